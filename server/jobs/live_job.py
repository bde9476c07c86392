"""A job that is on its way, in memory, and what its followers are told of it. Knows neither store nor worker."""

import asyncio
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
    done: dict[int, int] = field(default_factory=dict)  # steps by image
    is_sent: bool = False
    is_begun: bool = False  # by the worker that is running
    followers: set["asyncio.Queue[JobEvent]"] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    expiry: asyncio.TimerHandle | None = None

    def missing(self) -> list[int]:
        return [index for index in range(len(self.job.requests)) if index not in self.images]

    def finished_images(self) -> list[StoredImage]:
        """The images that there are, by index."""
        return [self.images[index] for index in sorted(self.images)]

    def tell(self, event: JobEvent) -> None:
        for follower in self.followers:
            follower.put_nowait(event)
