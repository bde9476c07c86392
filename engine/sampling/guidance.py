"""Classifier-free guidance at diffusers' scale."""

import numpy as np

from engine.array import Array


def guide(positive: Array, negative: Array, scale: float) -> Array:
    """Combine the latents after a step under the prompt and under the negative prompt.

    Both steps began at the same latents and are linear in velocity, so combining latents combines velocities.
    """
    latents: Array = positive + np.float32(scale) * (positive - negative)
    return latents
