"""The id that every response carries, so that a user's report finds its line in the log.

Knows no routes. The outermost layer of ours, so what nobody caught ends here, in OpenAI's shape.
"""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.api.errors import internal_error, shutting_down

log = logging.getLogger(__name__)

HEADER = "x-request-id"
PROBES = ("/health", "/ready", "/metrics")
SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # what may stand in a log line and a header as it came


class RequestIdMiddleware:
    """Echoes a sane `x-request-id` or makes one; `logs.request_id` for those inside, and logs every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        logs.request_id.set(request_id)
        began, started = time.perf_counter(), False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[HEADER] = request_id
                _log(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if started:
                raise
            log.exception("%s %r failed", scope["method"], scope["path"])
            await internal_error().response()(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server's grace is over; this is the end of its task
            if started:
                raise
            log.warning("%s %r was cut off", scope["method"], scope["path"])
            await shutting_down().response()(scope, receive, send_with_id)


def _log(scope: Scope, status: int, seconds: float) -> None:
    """A line for each answer; probes, which come every few seconds, only where somebody debugs."""
    method, path = scope["method"], scope["path"]
    told = {"method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
    level = logging.DEBUG if path in PROBES else logging.INFO
    log.log(level, "%s %r %d in %.3f s", method, path, status, seconds, extra=told)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(HEADER, "")
    return given if SANE.fullmatch(given) else new_id()


def new_id() -> str:
    return f"req_{uuid.uuid4().hex}"
