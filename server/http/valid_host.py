"""Refusal of requests to other host names, against DNS rebinding. Knows headers and probes; no other routes.

starlette's `TrustedHostMiddleware` compares texts: it knows neither other spellings of a name nor X-Forwarded-Host,
takes the first of two headers, and answers in plain text.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.errors import ECHO, ApiError, refuse
from server.api.request_id import PROBES
from server.http.host_names import HostNames, parse_host


class ValidHostMiddleware:
    """Passes on requests whose Host, and X-Forwarded-Host if there is one, are valid names."""

    def __init__(self, app: ASGIApp, names: HostNames) -> None:
        self._app = app
        self._valid = names.valid
        self._open = () if names.is_loopback else PROBES  # orchestrators call them by changing addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_checked = scope["type"] in ("http", "websocket") and scope["path"] not in self._open
        if is_checked and (error := self._refusal(scope)):
            await refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Return the error of a request; None if it may pass."""
        hosts, forwarded = (
            [value.decode("latin-1") for name, value in scope["headers"] if name == header]
            for header in (b"host", b"x-forwarded-host")
        )
        if len(hosts) == 1 and len(forwarded) <= 1 and all(map(self._is_valid, hosts + forwarded)):
            return None
        got = ", ".join(repr(host[:ECHO]) for host in (hosts + forwarded)[:4]) or "none"
        expected = "one host name" if self._valid is None else ", ".join(self._valid)
        return ApiError(
            421,
            f"This server does not serve the host of the request: got {got}, expected {expected}. "
            "If the server has this name, add it to --hosts.",
            code="misdirected_request",
        )

    def _is_valid(self, host: str) -> bool:
        name = parse_host(host)
        return name is not None and (self._valid is None or name in self._valid)
