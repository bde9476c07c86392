"""Pixels for the masked part of an image, from the colours around it. Knows arrays; neither files nor models.

Colours spread inwards over a pyramid: averages of the known pixels at ever lower resolutions fill the holes of the level
above (push-pull interpolation: Gortler and others, "The Lumigraph", 1996).
"""

import numpy as np
from PIL import Image


def fill_from_surroundings(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image whose masked pixels have smooth colours of those around them; all others stay as they are.

    Args:
        pixels: [height, width, 3] uint8.
        mask: [height, width]; 0 for pixels to keep. An image without such pixels is returned unchanged.
    """
    weight = (mask == 0).astype(np.float32)[..., None]
    if not weight.any():
        return pixels
    colour = pixels * weight
    levels = []
    while not weight.all():
        levels.append((colour, weight))
        colour, weight = _halved(colour, weight)
    for finer, known in reversed(levels):
        colour = np.where(known > 0, finer, _enlarged(colour, known.shape[:2]))
    return np.rint(colour).clip(0, 255).astype(np.uint8)


def _halved(colour: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colour of the known pixels of each 2 x 2 square, and 1 where there are any."""
    count = _sums(weight)
    return _sums(colour * weight) / np.maximum(count, 1), np.minimum(count, 1)


def _sums(values: np.ndarray) -> np.ndarray:
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    columns = even[:, ::2] + even[:, 1::2]
    sums: np.ndarray = columns[::2] + columns[1::2]
    return sums


def _enlarged(colour: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    planes = (Image.fromarray(colour[..., channel]) for channel in range(3))  # float32: mode F
    return np.stack([plane.resize((width, height), Image.Resampling.BILINEAR) for plane in planes], -1)
