"""Unfinished jobs in memory, with the clients that follow them. Knows neither store nor worker."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.plan.manifest import Manifest
from server.jobs.clock import Timer
from server.jobs.follower import Change, Follower, ImageFinished, Progress
from server.jobs.job import Job, StoredImage
from server.worker.packed_image import PackedImage

SAVE_SECONDS = 2.0  # that an answer waits at most until its images and its job's end are on the disk


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job that has not ended, or whose end is not stored yet.

    Attributes:
        images: finished ones, by index.
        steps_done: of the images that are not finished, by index.
        init_image: the packed image that it begins with, until the worker has it; None if the store must be asked.
        init_image_bytes: of that image in the worker, unpacked.
        sent: indices of the unfinished images that workers have.
        lost_on: name of the device whose worker died while it may have been generating this.
        ended: set when the state is final.
        saving: writes to the disk that its answer waits for.
    """

    job: Job
    images: dict[int, StoredImage] = field(default_factory=dict)
    steps_done: dict[int, int] = field(default_factory=dict)
    init_image: PackedImage | None = None
    init_image_bytes: int = 0
    sent: set[int] = field(default_factory=set)
    lost_on: str | None = None
    followers: set[Follower] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    saving: list["asyncio.Future[Any]"] = field(default_factory=list)
    deadline_timer: Timer | None = None

    def missing(self) -> list[int]:
        """Return the indices of the images that are not finished."""
        return [index for index in range(self.job.image_count) if index not in self.images]

    def slots(self, manifest: Manifest) -> int:
        """Return the number of the engine's slots that each image takes."""
        return 2 if self.job.request.is_guided(manifest) else 1

    @property
    def is_waiting(self) -> bool:
        """True if there are unfinished images that no worker has."""
        return len(self.sent) + len(self.images) < self.job.image_count

    def unsent(self) -> list[int]:
        """Return the indices of the unfinished images that no worker has."""
        return [index for index in self.missing() if index not in self.sent]

    def finished_images(self) -> list[StoredImage]:
        """Return the finished images in the order of their indices."""
        return [self.images[index] for index in sorted(self.images)]

    async def saved(self) -> None:
        """Wait until a kill of the server no longer loses what its answer says. A slow or full disk only delays it."""
        if self.saving:
            await asyncio.wait(self.saving, timeout=SAVE_SECONDS)

    @contextmanager
    def follow(self, progress: Progress, received: Collection[int] = ()) -> Iterator[Follower]:
        """Yield a follower with the events so far, which gets those to come.

        Args:
            progress: the current one.
            received: indices of images that the follower has.
        """
        follower = Follower()
        if not self.job.state.is_final:
            follower.put(progress)
        for index in sorted(self.images.keys() - set(received)):
            follower.put(ImageFinished(index))
        if self.job.state.is_final:
            follower.put(self.job)
        self.followers.add(follower)
        try:
            yield follower
        finally:
            self.followers.discard(follower)

    def notify_followers(self, change: Change) -> None:
        for follower in self.followers:
            follower.put(change)
