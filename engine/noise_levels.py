"""The noise levels of a sampling run: flow matching with a constant time shift, and which of its steps are guided.

Equal bit for bit to diffusers' FlowMatchEulerDiscreteScheduler after torch.linspace on a CPU with fused multiply-add:
a last bit decides whether a step is beyond `cfg_truncation`. Without numpy, so that the server counts passes too.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache

TRAIN_TIMESTEPS = 1000.0


@lru_cache(maxsize=256)
def noise_levels(steps: int, shift: float) -> tuple[float, ...]:
    """Return [steps + 1] noise levels from 1 down to 0, all of them float32 values.

    Args:
        steps: forward passes under the prompt (8 for Z-Image-Turbo; older diffusers examples pass 9 for 8 steps).
        shift: `scheduler_config.json`'s shift, 3 for Z-Image-Turbo and 6 for Z-Image.
    """
    assert steps >= 1
    return (*(_shifted(level, shift) for level in _linear(steps)), 0.0)


def guided_steps(levels: Sequence[float], truncation: float) -> int:
    """Return the number of steps, the first ones, that are guided under diffusers' `cfg_truncation`.

    A step is not guided if 1 - its noise level exceeds the truncation, with the roundings of diffusers' timesteps.

    Args:
        levels: [steps + 1] noise levels, from `noise_levels`, or the last ones of them.
    """
    return sum(_progress(level) <= truncation for level in levels[:-1])


def _linear(steps: int) -> list[float]:
    """Return torch.linspace(1, 1 / steps, steps), which is computed from both ends."""
    if steps == 1:
        return [1.0]
    end = _float32(1 / steps)
    step = _float32(_float32(end - 1) / (steps - 1))
    half = steps // 2
    return [_float32(1 + step * i) if i < half else _float32(end - step * (steps - i - 1)) for i in range(steps)]


def _shifted(level: float, shift: float) -> float:
    slope = _float32(_float32(shift - 1) * level)
    return _float32(_float32(_float32(shift) * level) / _float32(1 + slope))


def _progress(level: float) -> float:
    timestep = _float32(level * TRAIN_TIMESTEPS)
    return _float32(_float32(TRAIN_TIMESTEPS - timestep) / TRAIN_TIMESTEPS)


def _float32(value: float) -> float:
    """Round to float32. Of a sum, product or quotient of float32 values this is exactly float32's result."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
