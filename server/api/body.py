"""Bodies of requests, and the end of their connections. Knows requests; not the meaning of bodies.

FastAPI's own bodies are not used: they are read before the API key is checked and without a time limit, and their
errors (too large, not declared as JSON, not UTF-8) are not in OpenAI's shape.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocket

from server.api import errors
from server.api.decompression import Decompressor

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 30.0  # for the whole body to arrive


async def read_body(request: Request, model: type[Body], most: int = MAX_BODY) -> Body:
    """Read and validate a JSON body of at most `most` bytes, which may be compressed with gzip.

    The content type must be application/json: other sites' pages cannot send that without asking first (CORS).

    Raises:
        ApiError: the body is not what it must be; the message names the field.
    """
    if not is_json(request):
        raise errors.ApiError(415, "The content type must be application/json.", code="unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _bytes(request, most)
    except TimeoutError as error:
        raise errors.ApiError(
            408, f"The body did not arrive within {BODY_SECONDS:.0f} s.", code="request_timeout"
        ) from error
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise errors.invalid_body(error) from error


def is_json(request: Request) -> bool:
    """Return True if a request declares its body as JSON."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


async def _bytes(request: Request, most: int) -> bytes:
    body = Decompressor(request.headers.get("content-encoding", ""), most)
    async for chunk in request.stream():
        body.feed(chunk)
    return body.end()


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
