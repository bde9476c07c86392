"""Unfinished jobs in memory and the events for their followers. Knows neither store nor worker."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.jobs.job import Job, JobState, StoredImage


@dataclass(frozen=True, slots=True)
class Progress:
    """Place of a job in the queue, and its steps.

    Attributes:
        position: unfinished jobs that were accepted before it.
        eta: estimated seconds until its end.
        done: steps done, of all its images.
        steps: steps in total.
    """

    state: JobState
    position: int
    eta: float
    done: int
    steps: int


@dataclass(frozen=True, slots=True)
class JobPreview:
    """An approximation of an image after `done` of its steps, as an image file."""

    index: int
    done: int
    data: bytes


JobEvent = Progress | JobPreview | StoredImage | Job  # the final event is the ended Job


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job that has not ended, or whose end is not stored yet.

    Attributes:
        previews: of each image.
        client: name of the client that submitted it; clients get equal shares of the worker's time.
        images: finished ones, by index.
        steps_done: by index.
        is_sent, is_started: to and by the worker that is running.
        ended: set when the state is final.
    """

    job: Job
    previews: int = 0
    client: str = ""
    images: dict[int, StoredImage] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)
    is_sent: bool = False
    is_started: bool = False
    followers: set["asyncio.Queue[JobEvent]"] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    deadline_timer: asyncio.TimerHandle | None = None

    def missing(self) -> list[int]:
        """Return the indices of the images that are not finished."""
        return [index for index in range(self.job.image_count) if index not in self.images]

    def finished_images(self) -> list[StoredImage]:
        """Return the finished images in the order of their indices."""
        return [self.images[index] for index in sorted(self.images)]

    @contextmanager
    def subscribe(self, progress: Progress) -> Iterator["asyncio.Queue[JobEvent]"]:
        """Yield a queue of the events so far and those to come. `progress`: the current one."""
        events: asyncio.Queue[JobEvent] = asyncio.Queue()
        is_final = self.job.state.is_final
        if not is_final:
            events.put_nowait(progress)
        for image in self.finished_images():
            events.put_nowait(image)
        if is_final:
            events.put_nowait(self.job)
        self.followers.add(events)
        try:
            yield events
        finally:
            self.followers.discard(events)

    def notify_followers(self, event: JobEvent) -> None:
        for follower in self.followers:
            follower.put_nowait(event)
