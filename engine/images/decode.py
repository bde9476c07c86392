"""Decoding of untrusted image files, within bounds.

The format is chosen by content from an allow-list, and the size is read before anything is decoded. Knows neither masks
nor plans (see `prepare`), and does not bound the time: hostile files belong in a process of their own (see
`server.uploads`).

Formats are those that browsers show and that people send: PNG, JPEG, WebP, GIF and BMP. TIFF and AVIF are left out on
purpose: their libraries contain many codecs, each a way in for hostile files.
"""

import io
import struct
import warnings
from typing import Any, NamedTuple

from PIL import Image, ImageCms, ImageFile, JpegImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin

from engine.errors import InvalidRequest
from engine.images.header import DecodeLimits, check_header, check_size
from engine.size import Size

# Pillow imports these when a file needs them (TIFF's for EXIF data), and a confined process can open no module
PLUGINS = (JpegImagePlugin, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
COPIED = ("GIF", "WEBP")  # a GIF moves on when its next frame is looked for; a WebP holds three times its pixels
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {  # how to turn an image of each orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PROFILE = 4_000_000  # bytes of an ICC profile; those for print have up to 3 MB
# what Pillow raises for damaged files, beside DecompressionBombError
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,  # of a PNG that names colours of a palette and has none
    struct.error,
)


class Decoded(NamedTuple):
    """An image of mode "1", "L", "P", "RGB" or "RGBA", and notes for the user about what was changed."""

    image: Image.Image
    notes: tuple[str, ...]


def decode(data: bytes, param: str = "image", limits: DecodeLimits | None = None, is_mask: bool = False) -> Decoded:
    """Return the image in a file, the right way up, in sRGB, with 8 bits per channel.

    Bytes after the end of the image are ignored.

    Args:
        data: the file.
        param: name of the field that the file is from, for errors.
        is_mask: True to take its values as they are, whatever its colour profile.

    Raises:
        InvalidRequest: the file is too large, of no supported format, or damaged; `param` is the field.
        MemoryError: decoding takes more memory than there is.
    """
    limits = limits or DecodeLimits()
    header = check_header(data, param, limits)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[header.kind]) as file:
            check_size(Size(*file.size), param, limits)  # a GIF's frame may be larger than its header says
            image, notes = _in_srgb(_plain(file), None if is_mask else file.info.get("icc_profile"), param)
            image = _upright(image, file)
            if _is_animated(file):
                notes.append(f"{param} is animated; only its first frame is used")
            return Decoded(image, tuple(notes))
    except Image.DecompressionBombError as error:  # a frame is larger than Pillow's own limit
        raise InvalidRequest(
            f"{param} must have at most {limits.max_pixels / 1e6:g} million pixels; {error}", param
        ) from error
    except DAMAGED as error:
        raise InvalidRequest(
            f"{param} is damaged or incomplete: its {header.kind} data cannot be decoded ({_reason(error)}); "
            "open it in an image editor and save it again",
            param,
        ) from error


def _plain(file: ImageFile.ImageFile) -> Image.Image:
    """Return the image with 8 bits per channel, in a mode of `Decoded` or "CMYK"."""
    file.load()
    if file.mode.startswith("I;16"):
        high = slice(0, None, 2) if file.mode.endswith("B") else slice(1, None, 2)
        return Image.frombytes("L", file.size, file.tobytes()[high])  # as Pillow reads RGB of 16 bits
    if file.has_transparency_data:
        return file.copy() if file.mode == "RGBA" and file.format in COPIED else file.convert("RGBA")
    if file.mode in ("1", "L", "P", "RGB", "CMYK"):
        return file.copy() if file.format in COPIED else file
    return file.convert("L" if file.mode in ("I", "F") else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None, param: str) -> tuple[Image.Image, list[str]]:
    """Return the image in RGB or grey with the colours that its ICC profile means, and notes."""
    if image.mode == "CMYK" and not profile:
        return image.convert("RGB"), [f"{param} is CMYK without a colour profile; its colours are approximate"]
    if not profile:
        return image, []
    try:
        return _converted(image, profile)
    except (ImageCms.PyCMSError, *DAMAGED):
        plain = image if image.mode != "CMYK" else image.convert("RGB")
        return plain, [f"the colour profile of {param} cannot be used; its colours are taken as sRGB"]


def _converted(image: Image.Image, data: bytes) -> tuple[Image.Image, list[str]]:
    if len(data) > MAX_PROFILE:
        raise ValueError(f"a profile of {len(data)} bytes")
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    if "sRGB" in ImageCms.getProfileDescription(profile):
        return image, []
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
    converted = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, []


def _upright(image: Image.Image, file: ImageFile.ImageFile) -> Image.Image:
    """Return the image turned as its EXIF data say, if they can be read."""
    try:
        orientation: Any = file.getexif().get(ORIENTATION)
    except DAMAGED:
        return image
    how = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if how is None else image.transpose(how)


def _is_animated(file: ImageFile.ImageFile) -> bool:
    """Return True if there is a second frame. Leaves `file` there."""
    if file.format == "MPO":  # its other pictures are previews, or the view of another eye
        return False
    try:
        return bool(getattr(file, "is_animated", False))
    except DAMAGED:
        return True  # there is a second frame, but it is damaged


def _reason(error: BaseException) -> str:
    return f"{error!s:.120}" or type(error).__name__
