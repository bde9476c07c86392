"""The projection from latents to small previews, one colour per latent pixel, fitted by least squares.

A build has no images, so this module draws some, and the checkpoint's own VAE encoder encodes them. It does not know
the denoiser; tests/engine/sampling/test_preview.py measures previews of half-generated images.
"""

from typing import Any

import numpy as np
import torch

from engine.errors import CheckpointError
from engine.plan.manifest import PreviewProjection
from export.checkpoint.models import Model

Array = np.ndarray[Any, np.dtype[np.float64]]

FITTED, HELD_OUT = 24, 8  # images; many small ones, since images differ most in their overall colours
SIDE = 96  # pixels; the full-size encoder takes 10 s for all images on two CPU cores
BATCH = 8  # images; the full-size encoder needs 0.4 GB for a batch, weights included
SHAPES = (2, 9)  # least and largest number of shapes in an image
SATURATION = (0.0, 1.5)  # factor on the saturation of a uniformly random colour; results are clipped to 0..255
ROUGHNESS = (1.0, 2.0)  # noise has the amplitude f^-roughness; photographs have about 1 (Field, 1987)
CONTRAST = 60.0  # standard deviation of the strongest noise, in units of 0..255; most noise is far weaker


def fit(encoder: Model) -> PreviewProjection:
    """Fit the projection of a checkpoint, and compute its R^2 on held-out images.

    Raises:
        CheckpointError: the encoder's output has NaN or Inf.
    """
    rng = np.random.default_rng(0)
    images = [draw(SIDE, SIDE, rng) for _ in range(FITTED + HELD_OUT)]
    latents = encode(encoder, images)
    colours = np.stack([average(image, SIDE // latents.shape[2]) for image in images])
    inputs, outputs = _columns(latents), colours.reshape(len(images), -1, 3)
    found = np.linalg.lstsq(np.concatenate(inputs[:FITTED]), np.concatenate(outputs[:FITTED]))[0]
    held_out = np.concatenate(outputs[FITTED:])
    missed = np.square(np.concatenate(inputs[FITTED:]) @ found - held_out).sum()
    r2 = 1 - missed / np.square(held_out - held_out.mean(0)).sum()
    *weights, bias = found.tolist()
    return PreviewProjection(tuple(map(tuple, weights)), tuple(bias), float(r2))


@torch.no_grad()
def encode(encoder: Model, images: list[Array]) -> Array:
    """Encode images [H, W, 3] in 0..255 to latents of the denoiser, [N, 16, H / 8, W / 8]: the scaled mean."""
    module, latents = encoder.load(), []
    for start in range(0, len(images), BATCH):
        channels_last = torch.from_numpy(np.stack(images[start : start + BATCH])).float()
        batch = channels_last.permute(0, 3, 1, 2).contiguous() / 127.5 - 1  # contiguous: GroupNorm is slow on strides
        latents.append(module(batch).double().numpy())
    found = np.concatenate(latents)
    if not np.isfinite(found).all():
        raise CheckpointError("vae/: the encoder's output for an image has NaN or Inf")
    return found


def average(image: Array, scale: int) -> Array:
    """Return the mean colours of scale x scale blocks, the ideal preview: [H, W, 3] -> [H / scale, W / scale, 3]."""
    height, width, _ = image.shape
    found: Array = image.reshape(height // scale, scale, width // scale, scale, 3).mean((1, 3))
    return found


def draw(height: int, width: int, rng: np.random.Generator) -> Array:
    """Draw shapes on a gradient under noise, colourful or nearly grey: [height, width, 3] in 0..255."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = _gradient(x, y, rng)
    for _ in range(rng.integers(*SHAPES, endpoint=True)):
        image[_shape(x, y, rng)] = _colour(rng)
    grey, coloured = (_noise(height, width, channels, rng) for channels in (1, 3))
    return np.clip(image + CONTRAST * rng.uniform() ** 2 * (grey + rng.uniform() * coloured), 0, 255)


def _gradient(x: Array, y: Array, rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    share = (along - along.min()) / np.ptp(along)
    start, end = _colour(rng), _colour(rng)
    gradient: Array = start + share[..., None] * (end - start)
    return gradient


def _shape(x: Array, y: Array, rng: np.random.Generator) -> Any:
    """Return the mask of an ellipse or a rectangle, [H, W] bool."""
    across, down = (x - rng.uniform()) / rng.uniform(0.05, 0.4), (y - rng.uniform()) / rng.uniform(0.05, 0.4)
    return np.hypot(across, down) < 1 if rng.integers(2) else np.maximum(abs(across), abs(down)) < 1


def _colour(rng: np.random.Generator) -> Array:
    """Return a random colour, [3] in 0..255."""
    even = rng.uniform(0, 255, 3)
    colour: Array = np.clip(even.mean() + rng.uniform(*SATURATION) * (even - even.mean()), 0, 255)
    return colour


def _noise(height: int, width: int, channels: int, rng: np.random.Generator) -> Array:
    """Return smooth noise of mean 0 and standard deviation 1, [height, width, channels]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(rng.standard_normal((height, width, channels)), axes=(0, 1))
    filtered = spectrum * (frequency ** -rng.uniform(*ROUGHNESS))[..., None]
    noise: Array = np.fft.irfft2(filtered, (height, width), axes=(0, 1))
    noise /= noise.std()
    return noise


def _columns(latents: Array) -> Array:
    """Return a row per pixel, with a column of ones for the bias: [N, C, h, w] -> [N, h * w, C + 1]."""
    pixels = latents.reshape(*latents.shape[:2], -1).transpose(0, 2, 1)
    return np.concatenate([pixels, np.ones((*pixels.shape[:2], 1))], axis=2)
