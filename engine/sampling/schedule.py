"""The noise levels of a sampling run as an array."""

import numpy as np

from engine.array import Array
from engine.noise_levels import noise_levels


def sigmas(steps: int, shift: float) -> Array:
    """Return [steps + 1] float32 noise levels from 1 down to 0; step i goes from element i to element i + 1.

    Args:
        steps, shift: see `noise_levels`.
    """
    return np.array(noise_levels(steps, shift), np.float32)
