"""Encoding of pixels as PNG, JPEG or WebP files, with metadata.

Knows formats; not the meaning of the metadata (see `metadata`) or the destination of files.
"""

import io
import logging
import re
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from isal import isal_zlib
from PIL import Image

from engine.array import Array
from engine.request import PNG, ImageFormat

log = logging.getLogger(__name__)

Deflate = Callable[[Array], bytes]

# ISA-L's level 0 writes a quarter more bytes; levels 2 and 3 save hardly any (`zimage-bench encode`)
DEFLATE: Deflate = partial(isal_zlib.compress, level=1)
WEBP_METHOD = 2  # of libwebp's 0 to 6; its default, 4, takes twice as long for 5 % fewer bytes at quality 80
FULL_CHROMA = 90  # JPEG quality from which colours keep their full resolution, as in ImageMagick
MAX_EXIF = 65533  # bytes; JPEG stores a segment's length in 16 bits
MAX_XMP = 65533 - len(b"http://ns.adobe.com/xap/1.0/\0")

USER_COMMENT = "parameters"  # keyword that AUTOMATIC1111's web UI and compatible tools use
NAMESPACE = "urn:zimage-trt:metadata"
KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,78}")  # fits a PNG keyword and an XML name
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def encode(pixels: Array, image_format: ImageFormat = PNG, text: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of an image file. The GIL is released for nearly all of the time.

    Args:
        pixels: [height, width, 3] uint8, RGB.
        image_format: format of the file.
        text: metadata by keyword. PNG has a tEXt or iTXt chunk for each. In JPEG and WebP, "parameters" is EXIF's
            UserComment and the others are properties of an XMP packet. Characters that a format cannot hold are
            dropped. Text above JPEG's limit of 64 KB is dropped with a warning.
    """
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, (pixels.dtype, pixels.shape)
    text = text or {}
    assert all(map(KEYWORD.fullmatch, text)), list(text)
    match image_format.kind:
        case "png":
            return png(pixels, text)
        case "jpeg":
            chroma = "4:4:4" if image_format.quality >= FULL_CHROMA else "4:2:0"
            exif, xmp = _if_it_fits("EXIF", _exif(text), MAX_EXIF), _if_it_fits("XMP", _xmp(text), MAX_XMP)
            return _saved(pixels, "JPEG", quality=image_format.quality, subsampling=chroma, exif=exif, xmp=xmp)
        case "webp":
            metadata = {"exif": _exif(text), "xmp": _xmp(text)}
            return _saved(pixels, "WEBP", quality=image_format.quality, method=WEBP_METHOD, **metadata)


def _saved(pixels: Array, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def enlarge(pixels: Array, factor: int) -> Array:
    """Resize [h, w, 3] uint8 to [factor * h, factor * w, 3] by bicubic interpolation."""
    height, width, _ = pixels.shape
    return np.asarray(Image.fromarray(pixels).resize((factor * width, factor * height), Image.Resampling.BICUBIC))


def png(pixels: Array, text: Mapping[str, str], deflate: Deflate = DEFLATE) -> bytes:
    """Return a PNG file. Pillow's zlib takes many times as long; `zimage-bench encode` compares values of `deflate`."""
    height, width, _ = pixels.shape
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),  # 8 bits, RGB
            *(_text_chunk(keyword, value) for keyword, value in text.items()),
            _chunk(b"IDAT", deflate(_filtered(pixels))),
            _chunk(b"IEND", b""),
        )
    )


def _filtered(pixels: Array) -> Array:
    """Subtract from each byte the mean of the pixels to the left and above: PNG's filter 3, Average.

    On photographs it gives 5 % fewer bytes than Up and Sub. A choice per row, as in libpng, takes longer.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height + 1, 3 * (width + 1)), np.uint8)  # zeros above and to the left
    rows[1:, 3:] = pixels.reshape(height, 3 * width)
    left, above = rows[1:, :-3], rows[:-1, 3:]
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = 3
    mean = (left & above) + ((left ^ above) >> 1)  # of bytes, without overflow
    np.subtract(rows[1:, 3:], mean, out=filtered[:, 1:])
    return filtered


def _text_chunk(keyword: str, value: str) -> bytes:
    """Return tEXt, which every reader knows, if Latin-1 is enough; otherwise iTXt, uncompressed, in UTF-8."""
    value = value.replace("\0", "")  # the format forbids it
    try:
        return _chunk(b"tEXt", f"{keyword}\0{value}".encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", f"{keyword}\0\0\0\0\0{value}".encode(errors="replace"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


def _exif(text: Mapping[str, str]) -> bytes:
    """Return an EXIF block with UserComment as its only value; empty without one.

    Pillow would write the type BYTE, but AUTOMATIC1111's web UI reads with piexif, which needs UNDEFINED.
    """
    if USER_COMMENT not in text:
        return b""
    comment = b"UNICODE\0" + text[USER_COMMENT].encode("utf-16-be", errors="replace")
    # offset of the first directory; count, tag, type, values, offset of the Exif directory, no further directory
    tiff = struct.pack(">2sHIHHHIII", b"MM", 42, 8, 1, 0x8769, 4, 1, 26, 0)
    return b"Exif\0\0" + tiff + struct.pack(">HHHIII", 1, 0x9286, 7, len(comment), 44, 0) + comment


def _xmp(text: Mapping[str, str]) -> bytes:
    properties = "".join(
        f"<zimage:{keyword}>{escape(NOT_XML.sub('', value))}</zimage:{keyword}>"
        for keyword, value in text.items()
        if keyword != USER_COMMENT
    )
    if not properties:
        return b""
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:zimage="{NAMESPACE}">{properties}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
    return packet.encode()


def _if_it_fits(kind: str, data: bytes, limit: int) -> bytes:
    if len(data) <= limit:
        return data
    log.warning(
        "metadata of %d bytes was left out of a JPEG file, which holds at most %d bytes of %s", len(data), limit, kind
    )
    return b""
