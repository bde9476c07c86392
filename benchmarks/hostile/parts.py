"""Ordinary image files, and the chunks and segments that they consist of."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
WRITERS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 80},
    "WEBP": {"quality": 60, "method": 0},
    "GIF": {},
    "BMP": {},
}

Chunk = tuple[bytes, bytes]  # its type and its data


def picture(rng: random.Random, mode: str = "RGB", most: int = 96) -> Image.Image:
    """Return a small image with smooth colours, of random size."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    coarse = Image.fromarray(numbers.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((rng.randint(8, most), rng.randint(8, most)), Image.Resampling.BICUBIC).convert(mode)


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a file of one of Pillow's formats."""
    stream = io.BytesIO()
    image.save(stream, kind, **WRITERS.get(kind, {}) | options)
    return stream.getvalue()


def ordinary(rng: random.Random, kind: str | None = None) -> bytes:
    """Return an ordinary file, of any accepted format unless one is given."""
    return written(picture(rng), kind or rng.choice(list(WRITERS)))


def png(chunks: list[Chunk]) -> bytes:
    """Return a PNG of these chunks, with correct checksums."""
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png_header(width: int, height: int, depth: int = 8, colours: int = 2, interlaced: int = 0) -> Chunk:
    """Return an IHDR chunk. `colours`: 0 for grey, 2 for RGB, 3 for a palette, 4 and 6 for grey and RGB with alpha."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)


def png_chunks(data: bytes) -> list[Chunk]:
    """Return the chunks of an intact PNG."""
    chunks, position = [], len(PNG_SIGNATURE)
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


def jpeg_segments(data: bytes) -> list[bytes]:
    """Return the segments of an intact JPEG with their markers, each scan with its data; the end is left out."""
    segments, position = [], 2
    while data[position + 1] != 0xD9:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == 0xDA:
            while not (data[end] == 0xFF and data[end + 1] != 0 and not 0xD0 <= data[end + 1] <= 0xD7):
                end += 1
        segments.append(data[position:end])
        position = end
    return segments


def jpeg(segments: list[bytes]) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + b"\xff\xd9"


def riff(chunks: list[Chunk]) -> bytes:
    """Return a WebP file of these chunks."""
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body
