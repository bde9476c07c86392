"""Pixels to the bytes of a file: PNG, JPEG, WebP, and what is said about the image in it.

Knows formats; not what the metadata means (`parameters`) nor where files go.
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

from engine.request import PNG, ImageFormat

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Deflate = Callable[[Array], bytes]

# ISA-L's level 0 writes a quarter more bytes, 2 and 3 hardly fewer (`zimage-bench encode`)
DEFLATE: Deflate = partial(isal_zlib.compress, level=1)
WEBP_METHOD = 2  # libwebp's 0..6; its default, 4, takes twice as long for 5 % fewer bytes at quality 80
FULL_CHROMA = 90  # JPEG: from this quality on colours are kept at full resolution, ImageMagick's rule
MAX_EXIF = 65533  # bytes; JPEG counts a segment's length in 16 bits
MAX_XMP = 65533 - len(b"http://ns.adobe.com/xap/1.0/\0")

USER_COMMENT = "parameters"  # the key that AUTOMATIC1111's web UI writes there, and others read there
NAMESPACE = "urn:zimage-trt:metadata"
KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,78}")  # fits a PNG keyword and an XML name
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def encode(pixels: Array, image_format: ImageFormat = PNG, text: Mapping[str, str] | None = None) -> bytes:
    """A file's bytes. The GIL is free for nearly all of the time.

    Args:
        pixels: [height, width, 3] uint8, RGB.
        image_format: of the file.
        text: metadata by keyword. PNG has a tEXt or iTXt chunk for each; in JPEG and WebP "parameters" is EXIF's
            UserComment and all others are properties of an XMP packet. Characters that the place cannot hold are
            dropped, and so is, with a warning, what is larger than JPEG's 64 KB.
    """
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, (pixels.dtype, pixels.shape)
    text = text or {}
    assert all(map(KEYWORD.fullmatch, text)), list(text)
    match image_format.kind:
        case "png":
            return png(pixels, text)
        case "jpeg":
            chroma = "4:4:4" if image_format.quality >= FULL_CHROMA else "4:2:0"
            exif, xmp = _that_fits("EXIF", _exif(text), MAX_EXIF), _that_fits("XMP", _xmp(text), MAX_XMP)
            return _saved(pixels, "JPEG", quality=image_format.quality, subsampling=chroma, exif=exif, xmp=xmp)
        case "webp":
            metadata = {"exif": _exif(text), "xmp": _xmp(text)}
            return _saved(pixels, "WEBP", quality=image_format.quality, method=WEBP_METHOD, **metadata)


def _saved(pixels: Array, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def enlarge(pixels: Array, factor: int) -> Array:
    """[h, w, 3] uint8 as [factor * h, factor * w, 3], smoothly."""
    height, width, _ = pixels.shape
    return np.asarray(Image.fromarray(pixels).resize((factor * width, factor * height), Image.Resampling.BICUBIC))


def png(pixels: Array, text: Mapping[str, str], deflate: Deflate = DEFLATE) -> bytes:
    """Written here, since Pillow's zlib takes many times as long; `zimage-bench encode` tries others as `deflate`."""
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
    """Each byte less the mean of the pixels to the left and above: PNG's filter 3, Average.

    On photographs it leaves 5 % fewer bytes than Up and Sub; the choice per row that libpng makes takes longer.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height + 1, 3 * (width + 1)), np.uint8)  # with zeros above and to the left
    rows[1:, 3:] = pixels.reshape(height, 3 * width)
    left, above = rows[1:, :-3], rows[:-1, 3:]
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = 3
    mean = (left & above) + ((left ^ above) >> 1)  # of bytes, without their overflow
    np.subtract(rows[1:, 3:], mean, out=filtered[:, 1:])
    return filtered


def _text_chunk(keyword: str, value: str) -> bytes:
    """tEXt, which every reader knows, where Latin-1 is enough; else iTXt, uncompressed, in UTF-8."""
    value = value.replace("\0", "")  # the format forbids it
    try:
        return _chunk(b"tEXt", f"{keyword}\0{value}".encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", f"{keyword}\0\0\0\0\0{value}".encode(errors="replace"))


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


def _exif(text: Mapping[str, str]) -> bytes:
    """A TIFF of two directories whose one value is UserComment; nothing if there is nothing to say.

    Not by Pillow, which types it as BYTE: piexif, which AUTOMATIC1111's web UI reads with, needs UNDEFINED.
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


def _that_fits(what: str, data: bytes, limit: int) -> bytes:
    if len(data) <= limit:
        return data
    log.warning("the image's metadata of %d bytes is left out: JPEG holds %d bytes of %s", len(data), limit, what)
    return b""
