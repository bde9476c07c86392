"""Routes of a dialect: errors in the shape that its clients read, and requests that other sites' pages must not send.

Knows neither bodies nor jobs.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from server.api import errors
from server.api.errors import ApiError


def with_errors(shape: Callable[[ApiError], dict[str, Any]]) -> type[APIRoute]:
    """Return a class of routes that answer errors in another shape than OpenAI's."""

    class DialectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await handler(request)
                except errors.EXPECTED as error:
                    answer = errors.logged(request, error)
                    return JSONResponse(shape(answer), answer.status, answer.headers)

            return handle

    return DialectRoute


def refuse_pages(request: Request) -> None:
    """Refuse a request without a JSON body that comes from a page in a browser.

    A browser sends such a request to any server, from any site, without asking first (CORS). Browsers send `Origin`
    with every POST, other clients do not.

    Raises:
        ApiError: 403, a page sent it.
    """
    if "origin" in request.headers:
        raise ApiError(403, "Pages must send their requests as JSON, to /v1/generate.", code="foreign_origin")


def refuse_body(request: Request) -> None:
    """Refuse a request whose parameters are in its URL if it has a body too.

    Raises:
        ApiError: 400, it has one.
    """
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        raise ApiError(400, "Send the parameters in the URL or in the body, not in both.", code="invalid_value")
