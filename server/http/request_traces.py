"""A span for each HTTP request, in the trace that its client has begun, if any. Knows routes; not what they do."""

from opentelemetry.trace import Span
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.tracing import Tracing

MAX_METHOD = 16  # characters; clients may send any word
UNTRACED = ("/health", "/ready", "/metrics")  # probes, which come every few seconds


class RequestTraceMiddleware:
    """Encloses each request in a span named after its route."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        method = scope["method"][:MAX_METHOD]
        attributes = {"http.request.method": method, "zimage.request_id": logs.request_id.get() or ""}
        with self._tracing.request(Headers(scope=scope).get("traceparent"), attributes) as span:

            async def send_with_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._name(span, scope, method, message["status"])
                await send(message)

            await self._app(scope, receive, send_with_status)

    def _name(self, span: Span, scope: Scope, method: str, status: int) -> None:
        """Name a span after the route that answers; paths would be as many as jobs."""
        route = getattr(scope.get("route"), "path", None)
        span.update_name(f"{method} {route}" if route else method)
        span.set_attribute("http.response.status_code", status)
        if route:
            span.set_attribute("http.route", route)
        if status >= 500:
            self._tracing.fail(span, "")
