"""Images as text in bodies: base64 and data URLs to bytes, and the hashes that stand for them. Knows no routes."""

import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from server.api import errors
from server.api.multipart import too_large
from server.uploads.limits import MAX_UPLOAD

T = TypeVar("T")
P = ParamSpec("P")

INLINE_BYTES = 1 << 18  # that are decoded or hashed in the event loop; a thread would take longer
PIECE = 1 << 20  # characters of base64 that are decoded without letting other threads run
DATA_URL = re.compile(r"data:[a-z0-9.+/-]*(?:;[a-z0-9_-]+=[^;,]*)*;base64,", re.IGNORECASE)
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
MAX_PREFIX = 256  # characters of a data URL before its data


def base64_length(size: int) -> int:
    """Return the characters of base64 for bytes."""
    return -(-size // 3) * 4


async def hashes_of(files: Mapping[str, bytes | None]) -> dict[str, str]:
    """Return the SHA-256 of each file that is there, for a body in whose place it stands."""

    def hashes() -> dict[str, str]:
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if data is not None}

    return await _in_thread(sum(len(data or b"") for data in files.values()), hashes)


async def all_from_base64(texts: Mapping[str, str], most: int) -> dict[str, bytes]:
    """Return the bytes of several images by the names of their fields. See `from_base64`."""

    def decoded() -> dict[str, bytes]:
        return {name: from_base64(text, name, most) for name, text in texts.items()}

    return await _in_thread(sum(map(len, texts.values())), decoded)


async def _in_thread(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of work on so many bytes: done in a thread if they are many."""
    if size <= INLINE_BYTES:
        return work(*args, **kwargs)
    return await run_in_threadpool(work, *args, **kwargs)


def from_base64(text: str, name: str, most: int = MAX_UPLOAD) -> bytes:
    """Return the bytes of an image that is written as base64 or as a data URL. URLs are not fetched.

    Args:
        name: of the field, for errors.
        most: bytes at most.

    Raises:
        ApiError: 400, it is something else; 413, it is too large.
    """
    if ADDRESS.match(text[:MAX_PREFIX]):
        raise errors.ApiError(
            400,
            f"{name} must be the image itself, as base64 or as a data URL; this server fetches no URLs.",
            code="url_not_fetched",
            param=name,
        )
    start = 0
    if text[:5].lower() == "data:":
        found = DATA_URL.match(text[:MAX_PREFIX])
        if found is None:
            raise _not_base64(name, "its data URL does not begin like data:image/png;base64,")
        start = found.end()
    text = text[start:].replace("\n", "").replace("\r", "")  # base64 has lines of 76 characters in MIME
    if len(text) > base64_length(most):
        raise too_large(name, most)
    try:
        pieces = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except ValueError as error:  # binascii.Error, or characters that are not ASCII
        raise _not_base64(name, str(error)) from error


def _not_base64(name: str, reason: str) -> errors.ApiError:
    message = f"{name} must be an image as base64 or as a data URL: {reason}."
    return errors.ApiError(400, message, code="invalid_data_url", param=name)
