"""Request ids, which connect a response with its lines in the log, and the access log. Knows no routes.

This is the outermost middleware of the server, so it also answers unexpected exceptions.
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
SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # safe in log lines and headers


LOGGED, METHOD = 256, 16  # characters of a path and of a method in the log


class RequestIdMiddleware:
    """Sets `x-request-id` (the client's, if it is safe, or a new one) and `logs.request_id`; logs every response."""

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
            log.exception("%s %r failed", scope["method"][:METHOD], scope["path"][:LOGGED])
            await internal_error().response()(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the grace period of a shutdown is over
            if started:
                raise
            log.warning("%s %r was cut off by the shutdown", scope["method"][:METHOD], scope["path"][:LOGGED])
            await shutting_down().response()(scope, receive, send_with_id)


def _log(scope: Scope, status: int, seconds: float) -> None:
    """Log a response; those to probes, which come every few seconds, at debug level only."""
    method, path = scope["method"][:METHOD], scope["path"][:LOGGED]
    fields = {"method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
    level = logging.DEBUG if path in PROBES else logging.INFO
    log.log(level, "%s %r %d in %.3f s", method, path, status, seconds, extra=fields)


def _request_id(scope: Scope) -> str:
    request_id = Headers(scope=scope).get(HEADER, "")
    return request_id if SAFE_ID.fullmatch(request_id) else _new_id()


def _new_id() -> str:
    return f"req_{uuid.uuid4().hex}"
