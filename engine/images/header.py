"""Formats and sizes of image files, from their first bytes. Decodes nothing and takes no memory.

The format is what the content says; names and declared types do not count. Sources: the PNG specification, ITU-T T.81
(JPEG), RFC 9649 (WebP), the GIF89a specification, and Microsoft's BITMAPINFOHEADER (BMP).
"""

import struct
from typing import Literal, NamedTuple

from engine.size import Size

FileKind = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP"]  # Pillow's names

JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frames (SOF); the others are tables
JPEG_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length
JPEG_END = (0xD9, 0xDA)  # of the image, and the start of its data


class Header(NamedTuple):
    """Format of an image file, and the size that it states; None if it states none."""

    kind: FileKind
    size: Size | None


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
    while position + 4 <= len(data) and data[position] == 0xFF:
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
