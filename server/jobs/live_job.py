"""A job that is on its way, in memory, and what its followers are told of it. Knows neither store nor worker."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.jobs.job import Job, JobState, StoredImage


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is. `position`: jobs accepted before it that are unfinished; `eta`: estimated seconds to its end."""

    state: JobState
    position: int
    eta: float
    done: int  # steps of all its images
    steps: int


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """What an image will be like after `done` of its steps: an image file."""

    index: int
    done: int
    data: bytes


JobEvent = Progress | PreviewReady | StoredImage | Job  # a Job is the last: it has ended


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job that has not ended, or whose end the store has not taken yet."""

    job: Job
    previews: int = 0
    images: dict[int, StoredImage] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)  # by image
    is_sent: bool = False  # to the running worker
    is_started: bool = False  # by the running worker
    followers: set["asyncio.Queue[JobEvent]"] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    deadline_timer: asyncio.TimerHandle | None = None

    def missing(self) -> list[int]:
        return [index for index in range(len(self.job.requests)) if index not in self.images]

    def finished_images(self) -> list[StoredImage]:
        """The images that there are, by index."""
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
