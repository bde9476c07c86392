"""The HTTP application: routes, middleware, errors, health checks and metrics.

Knows what is mounted where; endpoints and the shape of errors are in `server.api`.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import PlainTextResponse
from sse_starlette.sse import AppStatus

from engine.images.header import DecodeLimits
from engine.plan.manifest import Manifest
from server import tracing
from server.api import documentation, edits, errors, openapi
from server.api import model_info as model_info_api
from server.api import openai as openai_api
from server.api import tasks as tasks_api
from server.api.access import AccessPolicy, Authenticator
from server.api.dialects import mount as dialect_mount
from server.api.dialects.gradio_queue import Sessions
from server.api.dialects.names import DIALECTS
from server.api.edit_schemas import EditRequest
from server.api.image_input import ImageInput
from server.api.openai_schemas import ImagesRequest, StreamedImage
from server.api.public_address import PublicAddress
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
from server.http.unread_body import UnreadBodyMiddleware
from server.http.valid_host import ValidHostMiddleware
from server.jobs.service import JobService
from server.page.mount import page_router
from server.uploads.limits import MAX_UPLOAD, UploadLimits
from server.uploads.uploads import Uploads

probes = APIRouter()

NOT_OK: openapi.Responses = {
    503: {"model": Health, "description": "Not healthy or not ready; the body gives the reason"}
}


@dataclass(frozen=True, slots=True)
class AppOptions:
    """Options of the application.

    Attributes:
        policy: who may generate images, and how many.
        page: True to serve the web page at `/`.
        hosts: names that requests may use.
        trusted_proxies: addresses and networks whose X-Forwarded-* headers are believed.
        public_url: the server's address for its clients; None to take it from each request.
        model: the names of the model; None for that of the plans.
        cors_origins: origins whose pages may call the API; `*` for every one.
        dialects: names of the dialects to mount, beside OpenAI's and that of tasks.
        max_upload: bytes of an image that a client sends.
    """

    policy: AccessPolicy
    page: bool = False
    hosts: HostNames = field(default_factory=HostNames)
    trusted_proxies: tuple[str, ...] = ()
    public_url: PublicAddress | None = None
    model: ServedModel | None = None
    cors_origins: tuple[str, ...] = ()
    dialects: tuple[str, ...] = DIALECTS
    max_upload: int = MAX_UPLOAD


def create_app(jobs: JobService, options: AppOptions) -> FastAPI:
    """Create the application of a job service."""
    # sse-starlette would cut streams off at once; uvicorn lets them end within its grace period
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = FastAPI(
        title="zimage-trt",
        description=openapi.ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.jobs, app.state.authenticator = jobs, Authenticator(options.policy, jobs.hit, jobs.metrics.job_refused)
    app.state.model = options.model or ServedModel((jobs.manifest.model.name,))
    app.state.task_events = TaskEventEncoder(jobs)
    app.state.image_input = _image_input(jobs.manifest, options)
    app.state.started = int(time.time())
    app.state.gradio_sessions = Sessions()
    dialects = dialect_mount.routers(options.dialects)
    for router in (
        probes,
        *dialects,
        openai_api.router,
        edits.router,
        model_info_api.router,
        tasks_api.router,
        documentation.router,
    ):
        app.include_router(router)
    if options.page:
        app.include_router(page_router())
    for api in ("openai", "tasks", *dialect_mount.apis(options.dialects)):
        jobs.metrics.add_api(api)
    _add_middleware(app, options)
    errors.install(app)
    openapi.install(app, options.policy, ImagesRequest, EditRequest, StreamedImage, GenerateRequest, TaskEvent)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.image_input.close()


def _image_input(manifest: Manifest, options: AppOptions) -> ImageInput:
    if not manifest.has_image_input:
        return ImageInput(None, options.max_upload)
    return ImageInput(Uploads(UploadLimits(DecodeLimits(options.max_upload))), options.max_upload)


def _add_middleware(app: FastAPI, options: AppOptions) -> None:
    """Add the layers between HTTP and the routes, the innermost first."""
    if (active := tracing.active()) is not None:  # innermost, since others copy the scope, which gets the route
        from server.http.request_traces import RequestTraceMiddleware  # needs the extra `tracing`

        app.add_middleware(RequestTraceMiddleware, tracing=active)
    app.add_middleware(AmbiguousLengthMiddleware)
    app.add_middleware(UnreadBodyMiddleware)
    app.add_middleware(ValidHostMiddleware, names=options.hosts)
    app.add_middleware(ProxyMiddleware, networks=options.trusted_proxies, public_url=options.public_url)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestIdMiddleware)
    if options.cors_origins:  # outermost: answers to unexpected exceptions have its headers too
        app.add_middleware(CrossOriginMiddleware, origins=options.cors_origins)


@probes.get("/health", responses=NOT_OK)
async def health(jobs: Jobs, response: Response) -> Health:
    """Liveness: 503 once workers repeatedly fail to start, so that an orchestrator replaces the container."""
    report = Health.of(jobs)
    response.status_code = 503 if report.status == "failing" else 200
    return report


@probes.get("/ready", responses=NOT_OK)
async def ready(jobs: Jobs, response: Response) -> Health:
    """Readiness: 503 while a worker starts and while the server shuts down."""
    report = Health.of(jobs)
    response.status_code = 200 if report.status == "ok" else 503
    return report


@probes.get("/metrics", response_class=PlainTextResponse)
async def metrics(jobs: Jobs) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(jobs.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
