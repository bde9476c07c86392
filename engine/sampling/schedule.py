"""The noise levels of a sampling run: flow matching with a constant time shift.

Equal to diffusers' FlowMatchEulerDiscreteScheduler and DiffSynth's "Z-Image" template; the final sigma is 0.
"""

import numpy as np

from engine.array import Array


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
