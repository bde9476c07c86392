"""Texts in the head of a PNG file. Knows the chunks of the format; not what the texts mean."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = struct.Struct(">I4s")  # length and type of a chunk
CHECKSUM = 4  # bytes after a chunk's data
MAX_TEXT = 1 << 18  # bytes of all decompressed texts together


def texts(data: bytes) -> dict[str, str]:
    """Return the texts before the pixels, by keyword. `data`: a PNG file, or its beginning.

    Raises:
        ValueError: it is no PNG file, a text is damaged, or compressed texts are too long.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("it does not begin as a PNG file does")
    inflater = _Inflater()
    return dict(_text(kind, chunk, inflater) for kind, chunk in _chunks(data) if kind in (b"tEXt", b"zTXt", b"iTXt"))


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


def _text(kind: bytes, chunk: bytes, inflater: "_Inflater") -> tuple[str, str]:
    keyword, _, rest = chunk.partition(b"\0")
    if kind == b"iTXt":
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]  # after method, language and translated keyword
        return keyword.decode("latin-1"), (inflater.inflate(rest) if is_compressed else rest).decode()
    rest = inflater.inflate(rest[1:]) if kind == b"zTXt" else rest
    return keyword.decode("latin-1"), rest.decode("latin-1")


class _Inflater:
    """Decompresses the texts of one file, up to MAX_TEXT bytes in all: each of thousands could be small and inflate."""

    def __init__(self) -> None:
        self._left = MAX_TEXT

    def inflate(self, data: bytes) -> bytes:
        try:
            text = zlib.decompressobj().decompress(data, self._left + 1)
        except zlib.error as error:
            raise ValueError(f"a compressed text is damaged: {error}") from error
        self._left -= len(text)
        if self._left < 0:
            raise ValueError(f"its compressed texts have more than {MAX_TEXT} bytes")
        return text
