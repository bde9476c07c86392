"""Cosines and sines of the transformer's rotary embedding, per token.

They are inputs of the denoiser, so its graph has no position arithmetic and no tables. In Z-Image, prompt tokens have
the positions (1..L, 0, 0), image tokens (L + 1, row, column), and pad tokens of the image (0, 0, 0).
"""

from functools import lru_cache

import numpy as np

from engine.array import Array
from engine.plan.manifest import Rope, padded

KEPT = 16  # tables; 1024x1024 takes 16 ms and 2 MB, and the size can change at every step


@lru_cache(maxsize=KEPT)
def tables(rope: Rope, rows: int, columns: int, prompt_length: int) -> tuple[Array, Array]:
    """Return cosines and sines in the order of the unified sequence: image, padding, prompt.

    Args:
        rows, columns: the image in tokens (pixels / 16).
        prompt_length: padded prompt length in tokens.

    Returns:
        Two arrays [padded(rows * columns) + prompt_length, head_dim / 2], float32.
    """
    positions = _positions(rows, columns, prompt_length)  # [S, 3]
    angles = [_angles(positions[:, axis], dim, rope.theta) for axis, dim in enumerate(rope.axes_dims)]
    angle = np.concatenate(angles, axis=1)
    cos, sin = np.cos(angle), np.sin(angle)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


def _positions(rows: int, columns: int, prompt_length: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    image = rows * columns
    positions = np.zeros((padded(image) + prompt_length, 3), np.int64)
    positions[:image, 0] = prompt_length + 1
    positions[:image, 1] = np.repeat(np.arange(rows), columns)
    positions[:image, 2] = np.tile(np.arange(columns), rows)
    positions[padded(image) :, 0] = np.arange(1, prompt_length + 1)
    return positions


def _angles(position: np.ndarray[tuple[int], np.dtype[np.int64]], dim: int, theta: float) -> Array:
    frequencies = 1.0 / theta ** (np.arange(0, dim, 2) / dim)  # float64, then rounded once, as in the model
    return np.outer(position, frequencies).astype(np.float32)
