"""Pixels to PNG bytes."""

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

COMPRESS_LEVEL = 1  # zlib's fastest: a third of the default's time for a few per cent more bytes


def encode_png(pixels: np.ndarray[Any, Any], text: dict[str, str] | None = None) -> bytes:
    """A PNG file.

    Args:
        pixels: [height, width, 3] uint8, RGB.
        text: metadata written as tEXt / iTXt chunks.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=COMPRESS_LEVEL, pnginfo=info)
    return file.getvalue()
