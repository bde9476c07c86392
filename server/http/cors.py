"""Cross-origin requests (CORS): which sites' pages may call the API from a browser. Knows origins; no routes."""

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.origins import ANY

METHODS = ("GET", "HEAD", "POST", "DELETE")
EXPOSED = (
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Ignored-Parameters",
    "X-Image-Notes",
    "X-Job-Id",
    "X-Model",
    "X-Request-Id",
    "X-Should-Retry",
)


class CrossOriginMiddleware:
    """Allows pages of some origins to call the API, and answers their browsers' preflight requests.

    Never with credentials: API keys are sent as headers, and there are no cookies.

    Args:
        origins: those that may call the API, as `origins.parse_origin` returns them; `*` for every one.
        is_page: returns True for paths of this server's own page, which other sites must not read.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], is_page: Callable[[str], bool]) -> None:
        self._app, self._is_page = app, is_page
        self._api = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=(ANY,),
            allow_private_network=True,  # a site that is named here may be on another network
            expose_headers=EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_api = scope["type"] == "http" and not self._is_page(scope["path"])
        await (self._api if is_api else self._app)(scope, receive, send)
