"""Routes of a dialect: errors in the shape that its clients read, and requests that other sites' pages must not send.

Knows neither bodies nor jobs.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from server.api import errors
from server.api.body import is_json
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
    """Refuse a request that a browser sends to any server, from any site's page, without asking first (CORS).

    Browsers send `Origin` with every POST, other clients do not. Before they send JSON to another site, they ask.

    Raises:
        ApiError: 403, a page sent it and did not declare JSON.
    """
    if "origin" in request.headers and not is_json(request):
        raise ApiError(403, "A page must declare its request as application/json.", code="foreign_origin")


def refuse_body(request: Request) -> None:
    """Refuse a request whose parameters are in its URL if it has a body too.

    Raises:
        ApiError: 400, it has one.
    """
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        raise ApiError(400, "Send the parameters in the URL or in the body, not in both.", code="invalid_value")
