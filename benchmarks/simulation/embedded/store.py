"""A store that keeps nothing, for jobs that are simulated. Knows only their ends."""

import asyncio
from collections.abc import Callable
from typing import cast

from server.jobs.job import JobError, StoredImage
from server.jobs.live_job import LiveJob
from server.worker.packed_image import PackedImage


class _NoLoop:
    """The event loop of futures that never end and that nobody awaits."""

    def get_debug(self) -> bool:
        return False


class NoStates:
    """`JobStates` that are kept nowhere."""

    def start(self, id: str) -> bool:  # noqa: ARG002
        return True

    requeue = cancel = start

    def fail(self, id: str, error: JobError) -> bool:  # noqa: ARG002
        return True


class SimulatedStore:
    """A `TrackedStore` that takes every write at once.

    Args:
        on_ended: called with the id of a job that has ended.
    """

    store = NoStates()
    is_shared, is_in_memory, pending_writes = False, True, 0

    def __init__(self, on_ended: Callable[[str], object]) -> None:
        self._on_ended = on_ended
        self._loop = cast(asyncio.AbstractEventLoop, _NoLoop())

    async def init_image(self, id: str) -> PackedImage | None:  # noqa: ARG002
        return None

    def write_later(
        self,
        write: Callable[[], object],  # noqa: ARG002
        then: Callable[[], object] = lambda: None,
    ) -> "asyncio.Future[object]":
        then()
        return asyncio.Future(loop=self._loop)

    def add_image(self, id: str, image: StoredImage) -> "asyncio.Future[object]":  # noqa: ARG002
        return asyncio.Future(loop=self._loop)

    def finish(self, id: str, then: Callable[[], object] = lambda: None) -> "asyncio.Future[object]":
        return self.end(id, lambda: None, then)

    def end(
        self, id: str, write: Callable[[], object], then: Callable[[], object] = lambda: None
    ) -> "asyncio.Future[object]":
        self._on_ended(id)
        return self.write_later(write, then)

    def give_up_images(self, id: str) -> None:
        pass


class InitImagesAtHand:
    """`InitImages` that never need to be loaded."""

    def is_ready(self, live: LiveJob) -> bool:  # noqa: ARG002
        return True

    def stop(self) -> None:
        pass
