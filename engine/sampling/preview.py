"""Previews of an image that is still being generated: one colour per latent pixel, an eighth of the size.

The projection is fitted at export and stored in the manifest. Knows neither the pipeline nor the display of previews.
"""

import numpy as np

from engine.array import Array
from engine.plan.manifest import PreviewProjection


def estimate(latents: Array, latents_next: Array, sigma: float, sigma_next: float) -> Array:
    """Estimate the final latents from one Euler step, by following its velocity to sigma 0.

    Args:
        latents, latents_next: latents before and after the step, float32, of one shape.
        sigma, sigma_next: their noise levels; 0 <= sigma_next < sigma.

    Returns:
        An array of the same shape; after the last step, the values of `latents_next`.
    """
    assert sigma_next < sigma, f"a step goes from a sigma to a lower one, got {sigma} to {sigma_next}"
    with np.errstate(all="ignore"):  # the pipeline reports NaN and Inf
        velocity = (latents_next - latents) / (float(sigma_next) - float(sigma))
        finished: Array = latents_next - float(sigma_next) * velocity
    return finished


def preview_steps(count: int, steps: int) -> frozenset[int]:
    """Return up to `count` steps after which to show a preview, spread evenly, never the last step."""
    return frozenset(round(steps * (i + 1) / (count + 1)) for i in range(count)) - {0, steps}


def project(projection: PreviewProjection, latents: Array) -> Array:
    """Convert latents [16, h, w] to RGB [h, w, 3] uint8. NaN becomes black, since a preview must not fail."""
    with np.errstate(all="ignore"):
        colours = np.tensordot(latents, np.array(projection.weights, np.float32), (0, 0))
        colours += np.array(projection.bias, np.float32)
    pixels: Array = np.rint(np.clip(np.nan_to_num(colours), 0, 255)).astype(np.uint8)
    return pixels
