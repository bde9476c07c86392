"""What an image that is still being generated will look like: a colour per latent pixel, an eighth of its size.

The projection is fitted at export, in the manifest. It does not know the pipeline or how previews are shown.
"""

from typing import Any

import numpy as np

from engine.plan.manifest import Preview

Array = np.ndarray[Any, Any]


def estimate(latents: Array, latents_next: Array, sigma: float, sigma_next: float) -> Array:
    """The finished latents as the model sees them in one Euler step: straight on along its velocity to sigma 0.

    Args:
        latents, latents_next: before and after the step, of one shape; float32.
        sigma, sigma_next: of theirs; 0 <= sigma_next < sigma.

    Returns:
        Of their shape; after the last step `latents_next` itself.
    """
    assert sigma_next < sigma, f"a step goes from a sigma to a lower one, got {sigma} to {sigma_next}"
    with np.errstate(all="ignore"):  # NaN and Inf are the pipeline's to name
        velocity = (latents_next - latents) / (float(sigma_next) - float(sigma))
        finished: Array = latents_next - float(sigma_next) * velocity
    return finished


def project(preview: Preview, latents: Array) -> Array:
    """Latents [16, h, w] as RGB [h, w, 3] uint8. NaN is black: a preview is no place to fail."""
    with np.errstate(all="ignore"):
        colours = np.tensordot(latents, np.array(preview.weights, np.float32), (0, 0))
        colours += np.array(preview.bias, np.float32)
    pixels: Array = np.rint(np.clip(np.nan_to_num(colours), 0, 255)).astype(np.uint8)
    return pixels
