"""Decompression of request bodies (Content-Encoding). Knows encodings and sizes; not what the bytes mean."""

import zlib

from server.api import errors

GZIP = ("gzip", "x-gzip")
FORMAT = zlib.MAX_WBITS | 16  # with gzip's header and checksum


class Decompressor:
    """Decompresses a body as it arrives, up to a size.

    Args:
        encoding: value of the header Content-Encoding; empty for bytes that are not compressed.
        most: bytes of a body at most, compressed and decompressed.

    Raises:
        ApiError: 415, the encoding is not supported.
    """

    def __init__(self, encoding: str, most: int) -> None:
        name = encoding.strip().lower()
        if name not in ("", "identity", *GZIP):
            raise errors.ApiError(
                415,
                f"The content encoding {name[: errors.ECHO]!r} is not supported; send gzip, or no Content-Encoding.",
                code="unsupported_content_encoding",
                headers={"accept-encoding": "gzip"},
            )
        self._stream = zlib.decompressobj(FORMAT) if name in GZIP else None
        self._most, self._received = most, 0
        self._body = bytearray()

    @property
    def size(self) -> int:
        """Bytes so far, decompressed."""
        return len(self._body)

    def feed(self, data: bytes) -> None:
        """Take a part of the body.

        Raises:
            ApiError: 413, the body is too large; 400, it is not what its encoding says.
        """
        self._received += len(data)
        if self._stream is None:
            self._body += data
        else:
            self._inflate(self._stream, data)
        if max(self._received, self.size) > self._most:
            raise too_large(self._most)

    def end(self) -> bytes:
        """Return the decompressed body. Raises ApiError: 400, it is not complete."""
        if self._stream is not None and not self._stream.eof:
            raise _invalid("its end is missing")
        return bytes(self._body)

    def _inflate(self, stream: "zlib._Decompress", data: bytes) -> None:
        """Decompress at most one byte more than may come, however small the data are."""
        try:
            self._body += stream.decompress(data, self._most + 1 - len(self._body))
        except zlib.error as error:
            raise _invalid(str(error)) from error
        if stream.unused_data:  # a second member; no client sends one, and a thousand tiny ones would cost seconds
            raise _invalid("there is something after its end")


def too_large(most: int) -> errors.ApiError:
    """Return the error of a body that has more than `most` bytes."""
    return errors.ApiError(413, f"The body is larger than {most} bytes.", code="request_too_large")


def _invalid(reason: str) -> errors.ApiError:
    return errors.ApiError(400, f"The body is not valid gzip: {reason}.", code="invalid_content_encoding")
