"""The HTTP answers of a worker host: health, readiness and metrics, for orchestrators and Prometheus.

Knows one host; serves no jobs.
"""

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.fleet.host.host import WorkerHost


def probe_app(host: WorkerHost) -> Starlette:
    """Return the application of a host's port."""

    async def health(_: Request) -> Response:
        """Liveness: 503 once no device gets a worker that starts, so that an orchestrator replaces the host."""
        return JSONResponse(report(), 503 if host.is_failing else 200)

    async def ready(_: Request) -> Response:
        """Readiness: 503 while no device is ready, the database does not answer, or the host drains."""
        return JSONResponse(report(), 200 if host.is_ready else 503)

    async def metrics(_: Request) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(host.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def report() -> dict[str, object]:
        info = host.info()
        return {
            "status": host.status,
            "worker": info.id,
            "model": info.model,
            "plan_id": info.plan_id,
            "jobs": host.jobs,
            "devices": msgspec.to_builtins(info.devices),
            "detail": host.last_failure,
        }

    return Starlette(routes=[Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)])
