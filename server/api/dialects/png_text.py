"""Texts in the head of a PNG file. Knows the chunks of the format; not what the texts mean."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = struct.Struct(">I4s")  # length and type of a chunk
CHECKSUM = 4  # bytes after a chunk's data
MAX_TEXT = 1 << 20  # bytes of all texts, decompressed


def texts(data: bytes) -> dict[str, str]:
    """Return the texts before the pixels, by keyword. `data`: a PNG file, or its beginning.

    Raises:
        ValueError: it is no PNG file, a text is damaged, or the texts are too large.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("it does not begin as a PNG file does")
    found, left = {}, MAX_TEXT
    for kind, chunk in _chunks(data):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _text(kind, chunk, left)
            left -= len(keyword) + len(text)
            if left < 0:
                raise ValueError(f"its texts are larger than {MAX_TEXT} bytes")
            found[keyword.decode("latin-1")] = text.decode("utf-8" if kind == b"iTXt" else "latin-1")
    return found


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and data of the whole chunks before the pixels."""
    at = len(SIGNATURE)
    while at + HEAD.size <= len(data):
        length, kind = HEAD.unpack_from(data, at)
        at += HEAD.size
        if kind == b"IDAT" or at + length > len(data):
            return
        yield kind, data[at : at + length]
        at += length + CHECKSUM


def _text(kind: bytes, chunk: bytes, most: int) -> tuple[bytes, bytes]:
    """Return keyword and text of a chunk. A compressed text is cut after `most` + 1 bytes."""
    keyword, _, rest = chunk.partition(b"\0")
    if kind == b"tEXt":
        return keyword, rest
    is_compressed = kind == b"zTXt" or rest[:1] == b"\1"
    # after the method; of iTXt, after flag, method, language and translated keyword
    text = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    return keyword, _inflated(text, most + 1) if is_compressed else text


def _inflated(data: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:
        raise ValueError(f"a compressed text is damaged: {error}") from error
