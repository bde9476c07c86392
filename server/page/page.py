"""The page at `/`: generates, shows the image on its way, and keeps the gallery beside it.

Knows NiceGUI and orders; jobs are the dispatcher's, as for every endpoint. A visitor's order is a durable task: closing
the page leaves it alone. Each visit has a key, a form and a stage of its own.
"""

import base64
import json
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from nicegui import Client, background_tasks, core, ui
from nicegui import app as toolkit
from pydantic import ValidationError

from engine.errors import InvalidRequest
from engine.request import ImageRequest
from server.api import errors
from server.api.access import Authenticator
from server.api.submit import Submission, place
from server.jobs.admission import Refusal
from server.jobs.dispatcher import Dispatcher
from server.jobs.job import Job, JobState
from server.jobs.live_job import PreviewReady, Progress
from server.jobs.store import StoreUnavailable
from server.page.form import Form
from server.page.gallery import Gallery, image, progress_of, show_image, summary

STYLE = Path(__file__).with_name("page.css")
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">'
    '<rect width="8" height="8" rx="2" fill="#3f6fd8"/><path d="M2 2h4v1L3.4 5H6v1H2V5l2.6-2H2z" fill="#fff"/></svg>'
)
NOTHING = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # a transparent pixel
BLUE = "#3f6fd8"
KEY = "zimage-api-key"  # in the browser's storage
TICK = 0.5  # seconds between two looks at progress
RESTFUL = 6  # ticks between two looks at the gallery
MAX_WAITING = 256  # pages, of 0.2 MB each
RECONNECT = 30.0  # seconds for which a page that lost its connection is kept


def create(jobs: Dispatcher, authenticator: Authenticator) -> FastAPI:
    """The page as an application of its own. Once per process: the toolkit keeps its routes in a module."""
    style = STYLE.read_text()

    @ui.page("/")
    async def home(request: Request) -> None:
        ui.add_css(style)
        ui.colors(primary=BLUE)
        visit = Visit(jobs, authenticator, request)
        if authenticator.needs_key:
            await visit.ask_for_key()
        else:
            visit.open(None)

    toolkit.add_exception_handler(404, _not_found)  # its own makes a page for each, which is kept for a minute
    core.sio.on("log", _unlogged)
    app = FastAPI(openapi_url=None)
    ui.run_with(
        app,
        title=jobs.manifest.model.name,
        favicon=ICON,
        dark=None,  # as the browser likes it
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=RECONNECT,
    )
    return app


async def _not_found(request: Request, error: Exception) -> JSONResponse:
    return errors.translate(request, error).response()


def _unlogged(*_: object) -> None:
    """In the place of the toolkit's own, which writes what any visitor sends to the log."""


def is_crowded() -> bool:
    """Whether too many pages were sent to whoever then opened no connection, which costs memory for a minute each."""
    return sum(not client.has_socket_connection for client in Client.instances.values()) > MAX_WAITING


class Visit:
    """What one visitor sees."""

    def __init__(self, jobs: Dispatcher, authenticator: Authenticator, request: Request) -> None:
        self._jobs, self._authenticator, self._request = jobs, authenticator, request
        self._client = ui.context.client
        self._owner: str | None = None
        self._stage: dict[str, _PendingImage] = {}  # by job
        self._ticks = 0

    async def ask_for_key(self) -> None:
        """Opens the page to whoever has a key: what the browser remembers, or what is typed."""
        with ui.card().classes("z-card z-door") as door:
            ui.label(self._jobs.manifest.model.name).classes("z-name")
            ui.label("This server asks for an API key.").classes("z-quiet")
            typed = ui.input("API key", password=True).props("outlined autofocus autocomplete=current-password")
            enters = ui.button("Enter").props("unelevated no-caps").classes("z-generate")
            refusal = ui.label().classes("z-error")

        def enter(key: str) -> None:
            try:
                owner = self._authenticator.owner_of(key)
            except errors.ApiError:
                refusal.text = "That is no key of this server."
                return
            ui.run_javascript(f"localStorage.setItem({json.dumps(KEY)}, {json.dumps(key)})")
            door.delete()
            with self._client:
                self.open(owner)

        enters.on_click(lambda: enter(str(typed.value)))
        typed.on("keydown.enter", lambda: enter(str(typed.value)))
        await self._client.connected()
        remembered = await ui.run_javascript(f"return localStorage.getItem({json.dumps(KEY)})", timeout=RECONNECT)
        if remembered and not door.is_deleted:
            enter(str(remembered))

    def open(self, owner: str | None) -> None:
        """The page itself, for the owner of a key, or for everybody."""
        self._owner, manifest = owner, self._jobs.manifest
        ui.on_exception(lambda: self._say(str(errors.internal_error())))  # the toolkit logs it
        with ui.element("header").classes("z-bar"):
            ui.label(manifest.model.name).classes("z-name")
            ui.label(f"{manifest.precision}, {manifest.target.flavor}").classes("z-quiet z-grow")
            if owner is not None:
                ui.button("Forget the key", on_click=_forget_key).props("flat dense no-caps")
        with ui.element("main").classes("z-columns"):
            with ui.element("div").classes("z-card z-form"):
                self._form = Form(manifest, self._jobs.loras)
                self._form.prompt.on("keydown.ctrl.enter", self._generate)
                self._button = (
                    ui.button("Generate", on_click=self._generate).props("unelevated no-caps").classes("z-generate")
                )
                self._words = ui.label().classes("z-error").props("role=alert")
            with ui.element("div").classes("z-right"):
                self._shown = ui.element("div").classes("z-stage")
                self._gallery = Gallery(self._jobs, owner, self._again, self._is_under_way)
        ui.timer(TICK, self._tick)

    def _say(self, words: str) -> None:
        self._words.text = words

    async def _generate(self) -> None:
        self._say("")
        self._button.disable()
        try:
            job = await self._ordered()
        except (ValidationError, InvalidRequest, Refusal, StoreUnavailable, errors.ApiError) as error:
            self._say(_words(self._request, error))
            return
        finally:
            self._button.enable()
        self._drop_ended()
        with self._shown:
            pending = self._stage[job.id] = _PendingImage(self._jobs, job)
        _into_view(pending.element)
        following = background_tasks.create(self._follow(pending), name=f"follow {job.id}")
        self._client.on_delete(lambda: following.cancel())

    async def _ordered(self) -> Job:
        wanted = self._form.wanted()
        images = wanted.images()
        self._authenticator.count(self._request, self._owner)
        order = Submission("page", wanted, images, is_awaited=False, previews=wanted.previews)
        return await place(self._jobs, self._owner, order)

    async def _follow(self, pending: "_PendingImage") -> None:
        async for event in self._jobs.follow(pending.job):
            match event:
                case Progress():
                    pending.tell()
                case PreviewReady():
                    pending.preview(event)
                case Job(state=JobState.DONE):
                    self._drop_ended()
                    await self._show(pending, event)
                case Job():
                    self._drop(pending)
                    if event.error is not None:
                        self._say(event.error.message)
        await self._gallery.refresh()

    async def _show(self, pending: "_PendingImage", job: Job) -> None:
        """The image in the place of its previews."""
        all_metadata = await self._jobs.metadata(job.id)
        if not all_metadata:  # deleted in another tab
            self._drop(pending)
            return
        pending.has_ended = True
        pending.element.clear()
        with pending.element:
            show_image(job, 0, all_metadata[0], self._again, self._delete)

    async def _tick(self) -> None:
        for pending in self._stage.values():
            pending.tell()
        if self._ticks % RESTFUL == 0:
            await self._gallery.refresh()
        self._ticks += 1

    def _again(self, request: ImageRequest) -> None:
        self._form.take_over(request)
        _into_view(self._form.prompt)

    async def _delete(self, job: Job) -> None:
        if pending := self._stage.get(job.id):
            self._drop(pending)
        await self._gallery.delete(job)

    def _drop_ended(self) -> None:
        for pending in [pending for pending in self._stage.values() if pending.has_ended]:
            self._drop(pending)

    def _drop(self, pending: "_PendingImage") -> None:
        del self._stage[pending.job.id]
        pending.element.delete()

    def _is_under_way(self, job_id: str) -> bool:
        """Whether this page shows the job on its stage."""
        return job_id in self._stage and not self._stage[job_id].has_ended


class _PendingImage:
    """A job of this page on its way, on the stage."""

    def __init__(self, jobs: Dispatcher, job: Job) -> None:
        self._jobs, self.job, self.has_ended = jobs, job, False
        request = job.requests[0]
        with ui.element("div").classes("z-card z-generating") as self.element:
            with ui.element("div").classes("z-frame"):
                self._image = image(NOTHING, request.prompt, request.size(jobs.manifest))
            with ui.element("div").classes("z-side"):
                ui.label(request.prompt).classes("z-prompt")
                ui.label(summary(jobs, request)).classes("z-quiet")
                self._bar = ui.linear_progress(0, show_value=False)
                self._words = ui.label().classes("z-progress")
                ui.button("Cancel", on_click=lambda: jobs.cancel(job.id)).props("outline no-caps")
        self.tell()

    def preview(self, shown: PreviewReady) -> None:
        kind, data = self.job.format.media_type, base64.b64encode(shown.data).decode()
        self._image.props["src"] = f"data:{kind};base64,{data}"

    def tell(self) -> None:
        if not self.has_ended:
            self._bar.value, self._words.text = progress_of(self._jobs, self.job)


def _words(request: Request, error: Exception) -> str:
    """Why an order was not taken, and when it may be."""
    answer = errors.invalid_body(error) if isinstance(error, ValidationError) else errors.translate(request, error)
    seconds = (answer.headers or {}).get("retry-after")
    if seconds is None or answer.code == "rate_limit_exceeded":  # which says when
        return str(answer)
    return f"{answer} It may have room in about {seconds} s."


def _into_view(element: ui.element) -> None:
    """On a narrow screen form and images do not stand side by side."""
    ui.run_javascript(f"getHtmlElement({element.id}).scrollIntoView({{block: 'nearest', behavior: 'smooth'}})")


def _forget_key() -> None:
    ui.run_javascript(f"localStorage.removeItem({json.dumps(KEY)}); location.reload()")
