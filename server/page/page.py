"""The page at `/`: a form, the images in progress and the gallery.

Knows NiceGUI; jobs are those of `JobService`, as for every endpoint. A request from the page is a durable task, which
goes on when the page is closed. Each visitor has a session of its own.
"""

import asyncio
import base64
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from nicegui import background_tasks, ui
from pydantic import ValidationError

from engine.errors import InvalidRequest
from engine.plan.guide import Guide
from engine.request import ImageRequest
from server.api import errors
from server.api.access import Authenticator
from server.api.client import client_of
from server.api.public_address import address_of
from server.api.submit import Submission, enqueue
from server.errors import JobRefused, StoreUnavailable
from server.jobs.follower import JobPreview, Progress
from server.jobs.job import Job, JobState
from server.jobs.service import JobService
from server.page import address_check
from server.page.form import Form
from server.page.gallery import Gallery, image, progress_of, show_image, summary
from server.page.toolkit import drop_waiting_pages, guard_toolkit
from server.page.visit import READ, Visit

STYLE = Path(__file__).with_name("page.css")
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">'
    '<rect width="8" height="8" rx="2" fill="#3f6fd8"/><path d="M2 2h4v1L3.4 5H6v1H2V5l2.6-2H2z" fill="#fff"/></svg>'
)
EMPTY_IMAGE = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # a transparent pixel
BLUE = "#3f6fd8"
KEY = "zimage-api-key"  # in the browser's storage
TICK = 0.5  # seconds between two updates of the progress
GALLERY_TICKS = 6  # between two updates of the gallery
RECONNECT = 30.0  # seconds to keep a page that lost its connection


def create(jobs: JobService, authenticator: Authenticator, guide: Guide) -> FastAPI:
    """Create the page as an application. Once per process: the toolkit keeps its routes in a module."""
    style = STYLE.read_text()

    @ui.page("/")
    async def home(request: Request) -> None:
        drop_waiting_pages()
        ui.add_css(style)
        ui.add_body_html(address_check.script(request.headers, address_of(request)))
        ui.colors(primary=BLUE)
        session = PageSession(jobs, authenticator, request, guide)
        if authenticator.needs_key:
            await session.ask_for_key()
        else:
            session.open(None)

    guard_toolkit()
    app = FastAPI(openapi_url=None)
    ui.run_with(
        app,
        title=jobs.manifest.model.name,
        favicon=ICON,
        dark=None,  # as the browser prefers
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=RECONNECT,
    )
    return app


class PageSession:
    """One visitor's page."""

    def __init__(self, jobs: JobService, authenticator: Authenticator, request: Request, guide: Guide) -> None:
        self._jobs, self._authenticator, self._request = jobs, authenticator, request
        self._guide = guide
        self._root = f"{address_of(request).prefix}/"  # of the server, for links
        self._client = ui.context.client
        self._owner: str | None = None
        self._visit = None if authenticator.lists_history else Visit(jobs)
        self._cards: dict[str, _JobCard] = {}  # by job
        self._following: set[asyncio.Task[Any]] = set()
        self._ticks = 0

    async def ask_for_key(self) -> None:
        """Open the page for a valid API key, from the browser's storage or typed in."""
        with ui.card().classes("z-card z-door") as door:
            ui.label(self._jobs.manifest.model.name).classes("z-name")
            ui.label("This server requires an API key.").classes("z-quiet")
            typed = ui.input("API key", password=True).props("outlined autofocus autocomplete=current-password")
            enters = ui.button("Enter").props("unelevated no-caps").classes("z-generate")
            refusal = ui.label().classes("z-error")

        def enter(key: str) -> None:
            try:
                owner = self._authenticator.owner_of(key)
            except errors.ApiError:
                refusal.text = "This key is not valid."
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
        """Show the page of an owner; None without keys."""
        self._owner, manifest = owner, self._jobs.manifest
        ui.on_exception(lambda: self._show_error(str(errors.internal_error())))  # the toolkit logs it
        with ui.element("header").classes("z-bar"):
            ui.label(manifest.model.name).classes("z-name")
            ui.label(f"{manifest.precision}, {manifest.target.flavor}").classes("z-quiet z-grow")
            if owner is not None:
                ui.button("Forget key", on_click=_forget_key).props("flat dense no-caps")
        with ui.element("main").classes("z-columns"):
            with ui.element("div").classes("z-card z-form"):
                self._form = Form(manifest, self._jobs.loras, self._guide)
                self._form.prompt.on("keydown.ctrl.enter", self._generate)
                self._button = (
                    ui.button("Generate", on_click=self._generate).props("unelevated no-caps").classes("z-generate")
                )
                self._error = ui.label().classes("z-error").props("role=alert")
            with ui.element("div").classes("z-right"):
                self._shown = ui.element("div").classes("z-stage")
                self._gallery = Gallery(self._jobs, self._history, self._root, self._reuse, self._is_pending)
        self._client.on_delete(self._stop_following)
        if self._visit is not None:
            self._client.on_connect(partial(self._recall, self._visit))
        ui.timer(TICK, self._tick)

    async def _history(self, limit: int, before: int | None) -> tuple[list[Job], bool]:
        """Return a page of the owner's jobs; of this browser's where the history is not shared."""
        if self._visit is not None:
            return await self._visit.page(limit, before)
        page = await self._jobs.history(limit, before, self._owner)
        return page.jobs, page.has_more

    async def _recall(self, visit: Visit) -> None:
        """Show the jobs of this browser's earlier visits."""
        with suppress(TimeoutError):
            await visit.recall(await self._client.run_javascript(READ, timeout=RECONNECT))
            await self._gallery.refresh()

    def _stop_following(self) -> None:
        for task in self._following:
            task.cancel()

    def _show_error(self, text: str) -> None:
        self._error.text = text

    async def _generate(self) -> None:
        self._show_error("")
        self._button.disable()
        try:
            job = await self._submit()
        except (ValidationError, InvalidRequest, JobRefused, StoreUnavailable, errors.ApiError) as error:
            self._show_error(_error_text(self._request, error))
            return
        finally:
            self._button.enable()
        self._drop_ended()
        if self._visit is not None:
            ui.run_javascript(self._visit.add(job))
        with self._shown:
            card = self._cards[job.id] = _JobCard(self._jobs, job)
        _scroll_to(card.element)
        following = background_tasks.create(self._follow(card), name=f"follow {job.id}")
        self._following.add(following)
        following.add_done_callback(self._following.discard)

    async def _submit(self) -> Job:
        body = self._form.request()
        self._authenticator.count(self._request, self._owner)
        submission = Submission("page", body, body.image(), body.image_count, is_awaited=False, previews=body.previews)
        client = client_of(self._request, self._owner)
        return await enqueue(self._jobs, self._owner, submission, client=client)

    async def _follow(self, card: "_JobCard") -> None:
        async for event in self._jobs.follow(card.job):
            match event:
                case Progress():
                    card.update()
                case JobPreview():
                    card.preview(event)
                case Job(state=JobState.DONE):
                    self._drop_ended()
                    await self._show(card, event)
                case Job():
                    self._drop(card)
                    if event.error is not None:
                        self._show_error(event.error.message)
        await self._gallery.refresh()

    async def _show(self, card: "_JobCard", job: Job) -> None:
        """Show a finished image in the place of its previews."""
        all_metadata = await self._jobs.metadata(job.id)
        if not all_metadata:  # deleted in another tab
            self._drop(card)
            return
        card.has_ended = True
        card.element.clear()
        with card.element:
            show_image(job, 0, all_metadata[0], self._root, self._reuse, self._delete)

    async def _tick(self) -> None:
        for card in self._cards.values():
            card.update()
        if self._ticks % GALLERY_TICKS == 0:
            await self._gallery.refresh()
        self._ticks += 1

    def _reuse(self, request: ImageRequest) -> None:
        self._form.take_over(request)
        _scroll_to(self._form.prompt)

    async def _delete(self, job: Job) -> None:
        if card := self._cards.get(job.id):
            self._drop(card)
        await self._gallery.delete(job)

    def _drop_ended(self) -> None:
        for card in [card for card in self._cards.values() if card.has_ended]:
            self._drop(card)

    def _drop(self, card: "_JobCard") -> None:
        del self._cards[card.job.id]
        card.element.delete()

    def _is_pending(self, job_id: str) -> bool:
        """Return True if this page shows the job as in progress."""
        return job_id in self._cards and not self._cards[job_id].has_ended


class _JobCard:
    """A card with a job of this page: previews and progress, then the image."""

    def __init__(self, jobs: JobService, job: Job) -> None:
        self._jobs, self.job, self.has_ended = jobs, job, False
        request = job.request
        with ui.element("div").classes("z-card z-generating") as self.element:
            with ui.element("div").classes("z-frame"):
                self._image = image(EMPTY_IMAGE, request.prompt, request.size(jobs.manifest))
            with ui.element("div").classes("z-side"):
                ui.label(request.prompt).classes("z-prompt")
                ui.label(summary(jobs, request)).classes("z-quiet")
                self._bar = ui.linear_progress(0, show_value=False)
                self._status = ui.label().classes("z-progress")
                ui.button("Cancel", on_click=lambda: jobs.cancel(job.id)).props("outline no-caps")
        self.update()

    def preview(self, event: JobPreview) -> None:
        kind, data = self.job.format.media_type, base64.b64encode(event.data).decode()
        self._image.props["src"] = f"data:{kind};base64,{data}"

    def update(self) -> None:
        if not self.has_ended:
            self._bar.value, self._status.text = progress_of(self._jobs, self.job)


def _error_text(request: Request, error: Exception) -> str:
    """Return why a request was refused, and when to retry."""
    answer = errors.invalid_body(error) if isinstance(error, ValidationError) else errors.translate(request, error)
    seconds = (answer.headers or {}).get("retry-after")
    if seconds is None or answer.code == "rate_limit_exceeded":  # its message has the time
        return str(answer)
    return f"{answer} There may be room in about {seconds} s."


def _scroll_to(element: ui.element) -> None:
    """Scroll to an element; on narrow screens, form and images are not side by side."""
    ui.run_javascript(f"getHtmlElement({element.id}).scrollIntoView({{block: 'nearest', behavior: 'smooth'}})")


def _forget_key() -> None:
    ui.run_javascript(f"localStorage.removeItem({json.dumps(KEY)}); location.reload()")
