"""Cross-origin requests (CORS): which sites' pages may call the API from a browser. Knows origins; no routes."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

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


class CrossOriginMiddleware(CORSMiddleware):
    """Allows pages of some origins to call the API, and answers their browsers' preflight requests.

    Never with credentials: API keys are sent as headers, and there are no cookies.

    Args:
        origins: those that may call the API, as `origins.parse_origin` returns them; `*` for every one.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=(ANY,),
            allow_private_network=True,  # a site that is named here may be on another network
            expose_headers=EXPOSED,
        )
