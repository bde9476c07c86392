"""The events of a job for one client that follows it. Knows events; neither HTTP nor where images are."""

import asyncio
from collections import deque
from dataclasses import dataclass

from server.jobs.job import Job, JobState

MAX_PREVIEW_BYTES = 4 << 20  # of one job that wait for one client


@dataclass(frozen=True, slots=True)
class Progress:
    """Place of a job in the queue, and its steps.

    Attributes:
        position: unfinished jobs before it.
        eta: estimated seconds until its end.
        done: steps done, of all its images.
        steps: steps in total.
    """

    state: JobState
    position: int
    eta: float
    done: int
    steps: int


@dataclass(frozen=True, slots=True, weakref_slot=True)
class JobPreview:
    """An approximation of an image after `done` of its steps, as an image file."""

    index: int
    done: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """The image at an index is finished; `JobService.image` returns it."""

    index: int


Change = Progress | JobPreview | ImageFinished | Job | None  # the last one is the ended job; None if it was deleted


class Follower:
    """Events that a client has not read yet.

    A client that reads slowly gets only the newest progress, and misses previews beyond MAX_PREVIEW_BYTES. It gets
    every image, which is not kept here, and the end. So what waits for it is bounded.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._images: deque[JobPreview | ImageFinished] = deque()
        self._preview_bytes = 0
        self._end: Job | None = None
        self._has_ended = False
        self._changed = asyncio.Event()

    def put(self, change: Change) -> None:
        match change:
            case Progress():
                self._progress = change
            case ImageFinished():
                self._images.append(change)
            case JobPreview():
                self._images.append(change)
                self._preview_bytes += len(change.data)
                self._drop_previews()
            case Job() | None:
                self._progress, self._end, self._has_ended = None, change, True
        self._changed.set()

    async def get(self) -> Change:
        """Wait for the next event."""
        while self._progress is None and not self._images and not self._has_ended:
            self._changed.clear()
            await self._changed.wait()
        if self._images:  # before progress, of which there is always more
            event = self._images.popleft()
            self._preview_bytes -= len(event.data) if isinstance(event, JobPreview) else 0
            return event
        if self._progress is not None:
            progress, self._progress = self._progress, None
            return progress
        return self._end

    def _drop_previews(self) -> None:
        """Drop the oldest previews, but not the newest one."""
        while self._preview_bytes > MAX_PREVIEW_BYTES:
            first, *others = (event for event in self._images if isinstance(event, JobPreview))
            if not others:
                return
            self._images.remove(first)
            self._preview_bytes -= len(first.data)
