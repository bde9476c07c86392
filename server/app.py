"""The HTTP application: routes, middleware, errors, health checks and metrics.

Knows what is mounted where; endpoints and the shape of errors are in `server.api`.
"""

import time

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import PlainTextResponse
from sse_starlette.sse import AppStatus

from server.api import documentation, errors, openapi
from server.api import openai as openai_api
from server.api import tasks as tasks_api
from server.api.access import AccessPolicy, Authenticator
from server.api.openai_schemas import ImagesRequest, StreamedImage
from server.api.request_id import RequestIdMiddleware
from server.api.schemas import Health
from server.api.served_model import ServedModel
from server.api.submit import Jobs
from server.api.task_events import TaskEventEncoder
from server.api.task_schemas import GenerateRequest, TaskEvent
from server.http.ambiguous_length import AmbiguousLengthMiddleware
from server.http.cors import CrossOriginMiddleware
from server.http.head import HeadMiddleware
from server.http.host_names import HostNames
from server.http.proxies import ProxyMiddleware
from server.http.valid_host import ValidHostMiddleware
from server.jobs.service import JobService
from server.page.mount import PageMount, is_page

probes = APIRouter()

NOT_OK: openapi.Responses = {
    503: {"model": Health, "description": "Not healthy or not ready; the body gives the reason"}
}


def create_app(
    jobs: JobService,
    policy: AccessPolicy,
    page: bool = False,
    hosts: HostNames = HostNames(),  # noqa: B008
    trusted_proxies: tuple[str, ...] = (),
    model: ServedModel | None = None,
    cors_origins: tuple[str, ...] = (),
) -> FastAPI:
    """Create the application of a job service.

    Args:
        page: True to serve the web page at `/`; at most one application per process can.
        hosts: names that requests may use.
        trusted_proxies: addresses and networks whose X-Forwarded-* headers are believed.
        model: the names of the model; None for that of the plans.
        cors_origins: origins whose pages may call the API; `*` for every one.
    """
    # sse-starlette would cut streams off at once; uvicorn lets them end within its grace period
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = FastAPI(title="zimage-trt", description=openapi.ABOUT, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.jobs, app.state.authenticator = jobs, Authenticator(policy, jobs.metrics.job_refused)
    app.state.model = model or ServedModel((jobs.manifest.model.name,))
    app.state.task_events = TaskEventEncoder(jobs)
    app.state.started = int(time.time())
    app.include_router(probes)
    app.include_router(openai_api.router)
    app.include_router(tasks_api.router)
    app.include_router(documentation.router)
    for api in ("openai", "tasks", *(["page"] if page else [])):
        jobs.metrics.add_api(api)
    if page:
        app.add_middleware(PageMount, jobs=jobs, authenticator=app.state.authenticator, guide=app.state.model.guide)
    app.add_middleware(AmbiguousLengthMiddleware)
    app.add_middleware(ValidHostMiddleware, names=hosts)
    app.add_middleware(ProxyMiddleware, networks=trusted_proxies)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestIdMiddleware)
    if cors_origins:  # the last one added is the outermost: answers to unexpected exceptions have its headers too
        app.add_middleware(CrossOriginMiddleware, origins=cors_origins, is_page=is_page)
    errors.install(app)
    openapi.install(app, policy, ImagesRequest, StreamedImage, GenerateRequest, TaskEvent)
    return app


@probes.get("/health", responses=NOT_OK)
async def health(jobs: Jobs, response: Response) -> Health:
    """Liveness: 503 once workers repeatedly fail to start, so that an orchestrator replaces the container."""
    report = _report(jobs)
    response.status_code = 503 if report.status == "failing" else 200
    return report


@probes.get("/ready", responses=NOT_OK)
async def ready(jobs: Jobs, response: Response) -> Health:
    """Readiness: 503 while a worker starts and while the server shuts down."""
    report = _report(jobs)
    response.status_code = 200 if report.status == "ok" else 503
    return report


@probes.get("/metrics", response_class=PlainTextResponse)
async def metrics(jobs: Jobs) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(jobs.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _report(jobs: JobService) -> Health:
    manifest, status = jobs.manifest, jobs.status
    return Health(
        status=status,
        model=manifest.model.name,
        precision=manifest.precision,
        flavor=manifest.target.flavor,
        detail=None if status == "ok" else jobs.last_failure,
    )
