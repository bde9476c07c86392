"""The page's gallery: finished and running jobs.

Knows jobs and images; not the form.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from nicegui import ui

from engine.images.metadata import ImageMetadata
from engine.request import ImageRequest
from engine.size import Size
from server.api.schemas import image_path
from server.jobs.job import Job, JobState
from server.jobs.service import JobService

PAGE = 24  # jobs that are shown at once
CONFIRM = "Really delete?"

History = Callable[[int, int | None], Awaitable[tuple[list[Job], bool]]]
Reuse = Callable[[ImageRequest], None]
Delete = Callable[[Job], Awaitable[None]]


class Gallery:
    """Jobs, newest first, in the current element; a page of them at a time.

    Args:
        history: returns jobs below a sequence (None for the newest), at most a number of them, and True if there are
            older ones.
        root: path of the server's root, which ends with a slash; for links.
        reuse: called with a request to put into the form.
        is_elsewhere: returns True if a job, by its id, is shown in another place.
    """

    def __init__(
        self, jobs: JobService, history: History, root: str, reuse: Reuse, is_elsewhere: Callable[[str], bool]
    ) -> None:
        self._jobs, self._history, self._root = jobs, history, root
        self._reuse, self._is_elsewhere = reuse, is_elsewhere
        self._before: int | None = None  # sequence of the job after which the page begins; None for the newest
        self._last: int | None = None  # sequence of the page's last job, if there are older ones
        self._tiles: dict[str, _Tile] = {}
        self._refreshing = asyncio.Lock()
        self._grid = ui.element("div").classes("z-gallery")
        self._empty = ui.label("Your images will appear here.").classes("z-quiet")
        with ui.element("div").classes("z-buttons"):
            self._newest = ui.button("Newest images", on_click=lambda: self._turn_to(None)).props("outline no-caps")
            self._older = ui.button("Older images", on_click=lambda: self._turn_to(self._last)).props("outline no-caps")
        self._viewer = ui.dialog()

    async def refresh(self) -> None:
        """Show the current jobs."""
        async with self._refreshing:
            jobs, has_more = await self._history(PAGE, self._before)
            self._last = jobs[-1].sequence if jobs and has_more else None
            self._older.visible, self._newest.visible = self._last is not None, self._before is not None
            shown = [job for job in jobs if self._is_shown(job)]
            for job_id in self._tiles.keys() - {job.id for job in shown}:
                self._tiles.pop(job_id).element.delete()
            for index, job in enumerate(shown):
                if self._grid.is_deleted:
                    return
                self._place(job, index)
                await asyncio.sleep(0)  # requests of others come between the up to 10 images of each job
            self._empty.visible = not shown and self._before is None

    def _is_shown(self, job: Job) -> bool:
        return job.state is not JobState.CANCELLED and not self._is_elsewhere(job.id)

    def _place(self, job: Job, index: int) -> None:
        """Put the tile of a job at a place in the grid; replace the tile when the job has ended."""
        tile = self._tiles.get(job.id)
        if tile is not None and tile.is_final == job.state.is_final:
            return
        if tile is not None:
            tile.element.delete()
        with self._grid:
            tile = self._tiles[job.id] = _Tile(self._jobs, job, self._root, self._open, self.delete)
        tile.element.move(target_index=index)

    async def _turn_to(self, before: int | None) -> None:
        """Show the page of jobs before a sequence."""
        if not self._refreshing.locked():  # else one click is lost, not one read of the database kept for each
            self._before = before
            await self.refresh()

    async def _open(self, job: Job, index: int) -> None:
        all_metadata = await self._jobs.metadata(job.id)
        if index >= len(all_metadata):  # deleted in the meantime
            return
        self._viewer.clear()
        with self._viewer, ui.card().classes("z-card z-generating z-viewer"):
            show_image(job, index, all_metadata[index], self._root, self._take_over, self.delete)
        self._viewer.open()

    def _take_over(self, request: ImageRequest) -> None:
        self._viewer.close()
        self._reuse(request)

    async def delete(self, job: Job) -> None:
        """Delete a job with its images."""
        self._viewer.close()
        await self._jobs.delete(job.id)
        if tile := self._tiles.pop(job.id, None):
            tile.element.delete()


class _Tile:
    """A job in the grid: its images, its error, or a note that it is running."""

    def __init__(
        self, jobs: JobService, job: Job, root: str, open_: Callable[[Job, int], Awaitable[None]], delete: Delete
    ) -> None:
        self.is_final = job.state.is_final
        with ui.element("div").classes("z-job") as self.element:
            if job.state is JobState.DONE:
                for index in range(job.image_count):
                    request = job.request.numbered(index)
                    tile = ui.element("button").classes("z-card z-tile").props("type=button")
                    tile.on("click", partial(open_, job, index))
                    with tile:
                        image(root + image_path(job, index), request.prompt, request.size(jobs.manifest))
                        with ui.element("div").classes("z-note"):
                            ui.label(request.prompt).classes("z-two")
                            ui.label(summary(jobs, request)).classes("z-quiet")
                return
            with ui.element("div").classes("z-card z-tile"), ui.element("div").classes("z-note"):
                ui.label(job.request.prompt).classes("z-two")
                if job.error is not None:
                    ui.label(job.error.message).classes("z-error")
                    ui.button("Remove", on_click=partial(delete, job)).props("flat dense no-caps")
                else:
                    ui.label("in progress").classes("z-quiet")
                    ui.button("Cancel", on_click=partial(jobs.cancel, job.id)).props("flat dense no-caps")


def image(source: str, prompt: str, size: Size) -> ui.element:
    """Add an image whose space is reserved while it loads."""
    element = ui.element("img").style(f"--h: {size.height}; --w: {size.width}")
    element.props["src"], element.props["alt"], element.props["loading"] = source, prompt, "lazy"
    return element


def summary(jobs: JobService, request: ImageRequest) -> str:
    """Return size, steps and seed in words."""
    width, height = request.size(jobs.manifest)
    return f"{width} × {height} · {request.steps(jobs.manifest)} steps · seed {request.seed}"


def progress_of(jobs: JobService, job: Job) -> tuple[float, str]:
    """Return the progress between 0 and 1, and in words."""
    now = jobs.progress(job)
    left = f", about {now.eta:.0f} s" if now.eta >= 1 else ""
    if not jobs.is_ready:
        return 0.0, "waiting for the worker to start"
    if now.done:
        return now.done / now.steps, f"step {now.done} of {now.steps}{left}"
    if now.state.is_final:
        return 1.0, "done"
    if now.position:
        return 0.0, f"{now.position} ahead in the queue{left}"
    return 0.0, f"starting{left}"


def show_image(job: Job, index: int, metadata: ImageMetadata, root: str, reuse: Reuse, delete: Delete) -> None:
    """Show an image with its parameters and buttons, in the current element."""
    request, path = job.request.numbered(index), image_path(job, index)

    async def delete_when_confirmed() -> None:
        if is_confirmed := deletes.text == CONFIRM:
            await delete(job)
        deletes.text = deletes.text if is_confirmed else CONFIRM

    with ui.element("div").classes("z-frame"):
        image(root + path, request.prompt, metadata.size)
    with ui.element("div").classes("z-side"):
        ui.label(request.prompt).classes("z-prompt")
        with ui.element("div").classes("z-facts"):
            for name, value in _facts(request, metadata).items():
                ui.label(name)
                ui.label(value)
        with ui.element("div").classes("z-buttons"):
            ui.button("Reuse this seed", on_click=lambda: reuse(request)).props("unelevated no-caps")
            saves = ui.button("Save").props("outline no-caps")
            saves.props["href"], saves.props["download"] = root + path, path.replace("/", "-")
            deletes = ui.button("Delete", on_click=delete_when_confirmed).props("flat no-caps color=negative")


def _facts(request: ImageRequest, metadata: ImageMetadata) -> dict[str, str]:
    """Return the parameters of an image by name."""
    found = {
        "Size": f"{metadata.width} × {metadata.height}",
        "Steps": str(metadata.num_inference_steps),
        "Seed": str(metadata.seed),
        "LoRA": str(request.lora_choice or ""),
        "Guidance": f"{metadata.guidance_scale:g}" if metadata.guidance_scale else "",
        "Negative": request.negative_prompt,
        "Model": f"{metadata.model}, {metadata.precision}",
        "Generated in": f"{metadata.seconds.total:.2f} s",
        "Prompt cut to": metadata.revised_prompt or "",
    }
    return {name: value for name, value in found.items() if value}
