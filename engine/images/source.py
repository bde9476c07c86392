"""Images to start from as a user of the Python API gives them: files, bytes, Pillow images or arrays.

Knows neither uploads nor how images are brought to the size of the plans (see `prepare`).
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from engine.array import Array
from engine.errors import InvalidRequest
from engine.images.decode import Decoded, decode
from engine.images.header import DecodeLimits
from engine.images.preparation import Preparation
from engine.images.prepare import prepare
from engine.init_image import InitImage

# of a user's own files; Pillow stops at 179 million pixels
LIMITS = DecodeLimits(max_bytes=1_000_000_000, max_pixels=170_000_000)

ImageSource = str | os.PathLike[str] | bytes | Image.Image | Array


def read_init_image(image: ImageSource, mask: ImageSource | None, preparation: Preparation) -> InitImage:
    """Return an image to start from, in a size that the plans can generate.

    Args:
        image: a file's name, the bytes of a file, a Pillow image, or an array [height, width], [height, width, 3] or
            [height, width, 4] of uint8 or bool.
        mask: in any of these forms; white is drawn anew.

    Raises:
        InvalidRequest: the image or the mask cannot be used; `param` is "image" or "mask".
        OSError: a file cannot be read.
    """
    opened, notes = _opened(image, "image")
    opened_mask, mask_notes = (None, ()) if mask is None else _opened(mask, "mask")
    prepared = prepare(opened, opened_mask, preparation, notes + mask_notes)
    return replace(prepared, sha256=prepared.digest())


def _opened(source: ImageSource, param: str) -> Decoded:
    if isinstance(source, Image.Image):
        return Decoded(source, ())
    if isinstance(source, np.ndarray):
        return Decoded(_of_array(source, param), ())
    if isinstance(source, bytes):
        return decode(source, param, LIMITS, is_mask=param == "mask")
    file = Path(source)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the {param} {file}: {error.strerror}") from error
    try:
        return decode(data, param, LIMITS, is_mask=param == "mask")
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error}", error.param) from error


def _of_array(values: Array, param: str) -> Image.Image:
    if values.dtype == np.bool:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise InvalidRequest(
            f"{param} must be an array [height, width], [height, width, 3] or [height, width, 4] of uint8 or bool, "
            f"got {list(values.shape)} of {values.dtype}",
            param,
        )
    if not values.size:
        raise InvalidRequest(f"{param} must have pixels, got an array {list(values.shape)}", param)
    return Image.fromarray(np.ascontiguousarray(values))
