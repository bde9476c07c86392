"""The watch of an API replica over the jobs that clients wait for."""

import asyncio
from typing import Any

import pytest
from fakes.jobs import job
from fakes.loop import MANIFEST

from server.fleet.replica import watch
from server.fleet.replica.watch import Watch
from server.jobs.job import JobState
from server.jobs.storage.fleet.worker_info import JobStatus


class Store:
    """A store with one job, which has ended."""

    async def call(self, method: Any, *args: object) -> Any:
        return method(*args)

    def states(self, ids: list[str]) -> dict[str, JobStatus]:
        return {id: JobStatus(JobState.CANCELLED, 0, ()) for id in ids}

    def get(self, _: str) -> None:
        return None


class BrokenQueue:
    """A queue whose rows cannot be read."""

    def __init__(self) -> None:
        self.is_read = asyncio.Event()

    async def refresh(self) -> None:
        self.is_read.set()
        raise TypeError("a row of a newer version")

    def place(self, _: str) -> tuple[int, float]:
        return 0, 0.0

    def remove(self, _: str) -> None: ...


def test_clients_learn_of_ends_although_the_queue_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    store: Any = Store()
    queue: Any = BrokenQueue()

    async def follow_and_wait() -> None:
        watched = Watch(store, store, queue, MANIFEST)
        running = asyncio.create_task(watched.run())
        with watched.follow(job(), ()):
            await queue.is_read.wait()
            async with asyncio.timeout(10):
                await watched.wait(job())
        running.cancel()

    asyncio.run(follow_and_wait())
