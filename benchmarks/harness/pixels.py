"""Finished images, and how far apart two of them are."""

from typing import Any

import numpy as np

EQUAL_DB = 99.9  # what the distance of two equal images is written down as

Pixels = np.ndarray[Any, Any]  # [height, width, 3] uint8, RGB


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; infinite if they are equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def decibels(a: Pixels, b: Pixels) -> float:
    """`psnr` as reports have it, rounded, and EQUAL_DB at most: JSON knows no infinity."""
    return min(round(psnr(a, b), 1), EQUAL_DB)
