"""The noise levels of a sampling run: flow matching with a constant time shift.

Equal to diffusers' FlowMatchEulerDiscreteScheduler and DiffSynth's "Z-Image" template; the final sigma is 0.
"""

import numpy as np

from engine.array import Array


def skipped_steps(steps: int, strength: float) -> int:
    """Return the number of first steps that an init image replaces, with diffusers' arithmetic (`get_timesteps`).

    Args:
        steps: steps of the whole schedule.
        strength: share of the noise that the init image gets, 0 to 1; at 0 every step is skipped.
    """
    return int(max(steps - min(steps * strength, steps), 0))


def sigmas(steps: int, shift: float) -> Array:
    """Return noise levels from 1 down to 0.

    Args:
        steps: forward passes of the denoiser (8 for Z-Image-Turbo; older diffusers examples pass 9 for 8 steps).
        shift: `scheduler_config.json`'s shift, 3 for Z-Image-Turbo.

    Returns:
        [steps + 1] float32; step i goes from element i to element i + 1.
    """
    assert steps >= 1
    s = np.linspace(1, 0, steps + 1, dtype=np.float32)
    return (shift * s / (1 + (shift - 1) * s)).astype(np.float32)
