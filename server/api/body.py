"""What a request's connection brings: a body of one bounded length, and its end.

Knows ASGI; not what bodies mean.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from server.api import errors

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 30.0  # for a body to arrive; a client that dribbles is not waited for


class OneLengthMiddleware:
    """Refuses a request that tells its length twice.

    A proxy in front may have believed the other one, and have taken for a body what this server would take for the next
    request (RFC 9112, 6.3).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            error = errors.ApiError(
                400,
                "A request has a Content-Length or a Transfer-Encoding, not both.",
                code="invalid_http",
                headers={"connection": "close"},
            )
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def read(request: Request, kind: type[Body]) -> Body:
    """The body: JSON of a bounded length, declared as such, which a foreign web page cannot send unasked.

    Raises:
        ApiError: names what is wrong with it.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise errors.ApiError(415, "The content type must be application/json.", code="unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _bytes(request)
    except TimeoutError as error:
        raise errors.ApiError(408, "The body took too long to arrive.", code="request_timeout") from error
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise errors.invalid_body(error) from error


async def _bytes(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise errors.ApiError(413, f"The body is larger than {MAX_BODY} bytes.", code="request_too_large")
    return bytes(body)


async def while_connected(request: Request | WebSocket, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up.

    Args:
        request: its body has been read; what else comes before the client's leaving is not wanted.

    Raises:
        ClientDisconnect: there is nobody left to answer.
    """
    task = asyncio.create_task(work)
    hung_up = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((task, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        hung_up.cancel()


async def _hung_up(request: Request | WebSocket) -> None:
    while (await request.receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass
