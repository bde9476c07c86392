"""Images as arrays, and the distance between two of them."""

from typing import Any

import numpy as np

EQUAL_DB = 99.9  # reported distance of two equal images

Pixels = np.ndarray[Any, Any]  # [height, width, 3] uint8, RGB


def psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB, infinity if they are equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def decibels(a: Pixels, b: Pixels) -> float:
    """Return `psnr` rounded for a report, at most EQUAL_DB because JSON has no infinity."""
    return min(round(psnr(a, b), 1), EQUAL_DB)
