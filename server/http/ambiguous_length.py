"""Refusal of requests whose length is ambiguous. Knows headers; no routes."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import ApiError


class AmbiguousLengthMiddleware:
    """Refuses requests with both Content-Length and Transfer-Encoding.

    A proxy in front may believe the one and this server the other. A second request could then be hidden in the body of
    the first (request smuggling; RFC 9112, 6.3).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            error = ApiError(
                400,
                "A request must not have both Content-Length and Transfer-Encoding.",
                code="invalid_http",
                headers={"connection": "close"},
            )
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)
