"""Formats and sizes of image files, from their first bytes. Decodes nothing and takes no memory.

The format is what the content says; names and declared types do not count. Sources: the PNG specification, ITU-T T.81
(JPEG), RFC 9649 (WebP), the GIF89a specification, and Microsoft's BITMAPINFOHEADER (BMP).
"""

import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

from engine.errors import InvalidRequest
from engine.size import Size

ACCEPTED = "PNG, JPEG, WebP, GIF or BMP"

FileKind = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP"]  # Pillow's names

JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frames (SOF); the others are tables
JPEG_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x00, 0x01}  # markers without a length, and no marker
JPEG_END = (0xD9, 0xDA)  # of the image, and the start of its data
MAX_MARKERS = 4096  # before a JPEG's size; a file of 20 MB has room for millions, and they are read one by one


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Bounds on an image file. Only the first frame of an animation is decoded.

    Attributes:
        max_bytes: of the file.
        max_pixels: width times height, as the file states them before anything is decoded.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000


class Header(NamedTuple):
    """Format of an image file, and the size that it states; None if it states none."""

    kind: FileKind
    size: Size | None


def check_header(data: bytes, param: str, limits: DecodeLimits) -> Header:
    """Return the header of an image file within the limits.

    Args:
        param: name of the field that the file is from.

    Raises:
        InvalidRequest: the file is too large, or of no supported format; `param` is the field.
    """
    if len(data) > limits.max_bytes:
        raise InvalidRequest(
            f"{param} must have at most {limits.max_bytes / 1e6:g} MB, got {len(data) / 1e6:.1f} MB", param
        )
    if not data:
        raise InvalidRequest(f"{param} is empty; send a {ACCEPTED} file", param)
    header = read_header(data)
    if header is None:
        raise InvalidRequest(f"{param} must be a {ACCEPTED} file; got {_described(data)}", param)
    if header.size is None:
        raise InvalidRequest(f"{param} is damaged: its {header.kind} header states no size", param)
    check_size(header.size, param, limits)
    return header


def check_size(size: Size, param: str, limits: DecodeLimits) -> None:
    """Raise InvalidRequest if an image has too many pixels."""
    if size.area > limits.max_pixels:
        raise InvalidRequest(
            f"{param} must have at most {limits.max_pixels / 1e6:g} million pixels, got {size} "
            f"({size.area / 1e6:.1f} million)",
            param,
        )


def read_header(data: bytes) -> Header | None:
    """Return the format and size of an image file, or None if it is of no supported format."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Header("PNG", _unpacked(">II", data, 16) if data[12:16] == b"IHDR" else None)
    if data.startswith(b"\xff\xd8\xff"):
        return Header("JPEG", _jpeg_size(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Header("WEBP", _webp_size(data))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("GIF", _unpacked("<HH", data, 6))
    if data.startswith(b"BM") and len(data) >= 18:
        return Header("BMP", _bmp_size(data))
    return None


def _unpacked(form: str, data: bytes, offset: int) -> Size | None:
    """Return the width and height at an offset; None if they are not there, or not positive."""
    if len(data) < offset + struct.calcsize(form):
        return None
    width, height = struct.unpack_from(form, data, offset)
    return Size(width, height) if width > 0 and height > 0 else None


def _jpeg_size(data: bytes) -> Size | None:
    position = 2
    for _ in range(MAX_MARKERS):
        position = data.find(b"\xff", position)  # decoders skip what is between two segments
        if position < 0 or position + 4 > len(data):
            return None
        marker = data[position + 1]
        if marker in JPEG_END:
            return None
        if marker in JPEG_SIZES:
            flipped = _unpacked(">HH", data, position + 5)  # height first
            return None if flipped is None else Size(flipped.height, flipped.width)
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
        elif marker in JPEG_STANDALONE:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _webp_size(data: bytes) -> Size | None:
    chunk, fields = data[12:16], data[20:30]
    if len(fields) < 10:
        return None
    if chunk == b"VP8X":  # 24 bits each, less one
        return Size(1 + int.from_bytes(fields[4:7], "little"), 1 + int.from_bytes(fields[7:10], "little"))
    if chunk == b"VP8L" and fields[0] == 0x2F:  # 14 bits each, less one
        bits = int.from_bytes(fields[1:5], "little")
        return Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if chunk == b"VP8 " and fields[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", fields, 6)  # the two upper bits of each are a scale for display
        return Size(width & 0x3FFF, height & 0x3FFF) if width & 0x3FFF and height & 0x3FFF else None
    return None


def _bmp_size(data: bytes) -> Size | None:
    if int.from_bytes(data[14:18], "little") == 12:  # OS/2's header
        return _unpacked("<HH", data, 18)
    if len(data) < 26:
        return None
    width, height = struct.unpack_from("<ii", data, 18)
    return Size(width, abs(height)) if width > 0 and height else None  # a negative height: the top row is first


def _described(data: bytes) -> str:
    """Return what a file that is no image of ours seems to be."""
    for start, name in (
        (b"%PDF", "a PDF"), (b"PK\x03\x04", "a ZIP archive"), (b"II*\0", "a TIFF"), (b"MM\0*", "a TIFF"),
        (b"%!PS", "PostScript"), (b"\x1f\x8b", "a gzip file"), (b"\0\0\x01\0", "an icon"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"8BPS", "a Photoshop file"),
    ):  # fmt: skip
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        return "AVIF, HEIC or a video"
    if data[:256].lstrip()[:1] == b"<":
        return "SVG, HTML or XML"
    return f"a file that begins with the bytes {data[:8].hex(' ')}"
