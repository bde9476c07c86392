"""OpenTelemetry traces, if the environment asks for them and the extra `tracing` is installed.

Knows spans and the trace context; not what is traced. Nothing of OpenTelemetry is imported, and nothing is done,
unless `started` finds OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_TRACES_EXPORTER. Further
OTEL_* variables choose the sampler, the resource, headers, certificates and limits, as OpenTelemetry defines them.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS = ("otlp", "console")
PROTOCOL = "http/protobuf"  # the only one of OTLP whose package is in the extra
CLOSE_SECONDS = 5.0  # for the last spans, when a process ends

Attributes = Mapping[str, str | int | float | bool]

_active: "Tracing | None" = None


def active() -> "Tracing | None":
    """Return the tracing of this process; None if there is none."""
    return _active


def traceparent() -> str | None:
    """Return the trace context of the current request, to be passed on; None if it is not traced."""
    return None if _active is None else _active.traceparent()


@contextmanager
def started(service: str, exporter: "SpanExporter | None" = None) -> Iterator[None]:
    """Trace until the end of the block, if the environment asks for it.

    Args:
        service: name of the service, unless OTEL_SERVICE_NAME gives another.
        exporter: takes each span as it ends, in tests; None to do what the environment says.
    """
    global _active
    tracing = _create(service, exporter)
    _active = tracing
    try:
        yield
    finally:
        _active = None
        if tracing is not None:
            tracing.close()


def _create(service: str, exporter: "SpanExporter | None") -> "Tracing | None":
    kind = None if exporter is not None else _exporter_of(os.environ)
    if kind is None and exporter is None:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        if exporter is not None:
            provider.add_span_processor(SimpleSpanProcessor(exporter))
        else:
            provider.add_span_processor(BatchSpanProcessor(_exporter(kind)))
    except ModuleNotFoundError as error:
        log.warning("no traces: %s is not installed; in the checkout: pip install '.[tracing]'", error.name)
        return None
    return Tracing(provider)


def _exporter_of(environment: Mapping[str, str]) -> str | None:
    """Return the kind of exporter that the environment asks for, of EXPORTERS."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    kind = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not kind:
        return "otlp" if any(environment.get(name) for name in ENDPOINTS) else None
    if kind == "none":
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if kind not in EXPORTERS:
        log.warning("no traces: OTEL_TRACES_EXPORTER must be one of %s or none, got %r", ", ".join(EXPORTERS), kind)
        return None
    if kind == "otlp" and protocol not in (None, "", PROTOCOL):
        log.warning("traces are sent as %s, not as %r", PROTOCOL, protocol)
    return kind


def _exporter(kind: str | None) -> "SpanExporter":
    if kind == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Tracing:
    """Spans of one process. For any number of threads."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._trace, self._context = provider, trace, context
        self._tracer: Tracer = provider.get_tracer("zimage-trt")
        self._propagator = TraceContextTextMapPropagator()

    def traceparent(self, span: "Span | None" = None) -> str | None:
        """Return the context of a span, or of the current one, as in the header `traceparent`."""
        carrier: dict[str, str] = {}
        context = None if span is None else self._trace.set_span_in_context(span)
        self._propagator.inject(carrier, context)
        return carrier.get("traceparent")

    @contextmanager
    def request(self, traceparent: str | None, attributes: Attributes) -> Iterator["Span"]:
        """Enclose the work on a request of a client.

        Args:
            traceparent: header of the request.
        """
        parent, kind = self._parent(traceparent), self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(
            "request", parent, kind, dict(attributes), record_exception=False
        ) as span:
            yield span

    def start(
        self, name: str, parent: "Span | str | None", attributes: Attributes, start: float | None = None
    ) -> "Span":
        """Return a span that the caller ends.

        Args:
            parent: a span or the `traceparent` of one; None for a new trace.
            start: unix seconds; None for now.
        """
        began = None if start is None else _nanoseconds(start)
        return self._tracer.start_span(
            name, self._parent(parent), self._trace.SpanKind.INTERNAL, dict(attributes), start_time=began
        )

    def record(
        self, name: str, parent: "Span | str | None", start: float, end: float, attributes: Attributes
    ) -> "Span":
        """Record what has happened from `start` to `end`, in unix seconds."""
        span = self.start(name, parent, attributes, start)
        span.end(_nanoseconds(max(start, end)))
        return span

    def fail(self, span: "Span", reason: str) -> None:
        """Mark what a span is about as failed."""
        span.set_status(self._trace.StatusCode.ERROR, reason)

    def close(self) -> None:
        """Send the last spans, for CLOSE_SECONDS at most."""
        thread = threading.Thread(target=self._shut_down, name="tracing", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)

    def _shut_down(self) -> None:
        shutdown: Callable[[], object] = self._provider.shutdown
        shutdown()

    def _parent(self, parent: "Span | str | None") -> "Context":
        empty = self._context.Context()
        if isinstance(parent, str):
            return self._propagator.extract({"traceparent": parent}, empty)
        return empty if parent is None else self._trace.set_span_in_context(parent, empty)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
