"""Bodies of requests, and the end of their connections. Knows requests; not the meaning of bodies.

FastAPI's own bodies are not used: they are read before the API key is checked and without a time limit, and their
errors (too large, not declared as JSON, not UTF-8) are not in OpenAI's shape.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocket

from server.api import errors
from server.api.decompression import Decompressor, too_large

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

MAX_BODY = 1 << 20  # bytes
MAX_DIGITS = 18  # of the length that a request declares
BODY_SECONDS = 30.0  # for the whole body to arrive


async def read_body(
    request: Request, model: type[Body], most: int = MAX_BODY, on_growth: Callable[[int], None] = lambda _: None
) -> Body:
    """Read and validate a JSON body of at most `most` bytes, or of MAX_BODY bytes if it is compressed with gzip.

    The content type must be application/json: other sites' pages cannot send that without asking first (CORS).

    Args:
        on_growth: called with the size of the body so far.

    Raises:
        ApiError: the body is not what it must be; the message names the field.
    """
    if not is_json(request):
        raise errors.ApiError(415, "The content type must be application/json.", code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "")
    most = min(most, MAX_BODY) if encoding else most  # a larger one would be decompressed for too long at once
    body = Decompressor(encoding, most)
    async for piece in read_pieces(request, most):
        body.feed(piece)
        on_growth(body.size)
    try:
        return model.model_validate_json(body.end())
    except ValidationError as error:
        raise errors.invalid_body(error) from error


def is_json(request: Request) -> bool:
    """Return True if a request declares its body as JSON."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


async def read_pieces(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yield the pieces of a body as they arrive.

    Raises:
        ApiError: 408, it did not arrive in time; 413, it has more than `most` bytes, or says so.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > MAX_DIGITS or int(declared) > most):
        raise too_large(most)
    until, size, pieces = asyncio.get_running_loop().time() + BODY_SECONDS, 0, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(until):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            raise errors.ApiError(
                408, f"The body did not arrive within {BODY_SECONDS:.0f} s.", code="request_timeout"
            ) from error
        if piece is None:
            return
        size += len(piece)
        if size > most:
            raise too_large(most)
        yield piece


async def while_connected(request: Request | WebSocket, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it when the client disconnects.

    Args:
        request: request whose body has been read; further messages of the client are dropped.

    Raises:
        ClientDisconnect: the client disconnected first.
    """
    task = asyncio.create_task(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request | WebSocket) -> None:
    while (await request.receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
