"""The asynchronous store when writes are slow or fail."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from fakes.jobs import generated, job

from server.errors import StoreUnavailable
from server.jobs.storage.async_store import MAX_REFUSED_WRITES, AsyncStore
from server.jobs.storage.retention import Retention
from server.jobs.storage.store import JobStore

Story = Callable[[AsyncStore], Awaitable[None]]


def play(store: JobStore, story: Story) -> None:
    async def run() -> None:
        async_store = AsyncStore(store, Retention(max_bytes=1 << 30))
        async_store.start()
        try:
            await story(async_store)
        finally:
            async_store.close()
            await async_store.wait_closed()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_flush_does_not_wait_for_later_writes(tmp_path: Path) -> None:
    async def story(async_store: AsyncStore) -> None:
        def write_another() -> None:
            async_store.write_later(lambda: time.sleep(0.004), then=write_another)

        for _ in range(3):
            write_another()  # from now on there is always a pending write
        await async_store.flush()  # raises StoreUnavailable if it waits until none is left
        assert async_store.pending_writes

    play(JobStore(tmp_path / "jobs.db"), story)


def test_refused_write_is_pending_until_it_succeeds() -> None:
    refusals = 1

    def write() -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise StoreUnavailable("the disk is full")

    async def story(async_store: AsyncStore) -> None:
        for _ in range(3):
            async_store.write_later(write)
        assert async_store.pending_writes == 3
        await asyncio.sleep(0.1)
        assert async_store.pending_writes == 3
        await async_store.flush()
        assert async_store.pending_writes == 0

    play(JobStore(None), story)


def test_error_after_a_write_does_not_end_writing() -> None:
    def fail() -> None:
        raise RuntimeError

    async def story(async_store: AsyncStore) -> None:
        await async_store.write_later(lambda: None, then=fail)
        await async_store.flush()
        assert async_store.pending_writes == 0

    play(JobStore(None), story)


def test_unexpected_error_while_pruning_does_not_end_pruning() -> None:
    class Odd(JobStore):
        calls = 0

        def prune(self, _: Retention) -> int:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("odd")
            return 0

    store = Odd(None)

    async def story(async_store: AsyncStore) -> None:
        await asyncio.sleep(0.05)
        store.bytes_since_prune = 1 << 30
        async_store.write_later(lambda: None)
        await asyncio.sleep(0.05)
        assert store.calls == 2

    play(store, story)


def test_damaged_file_is_found_while_the_server_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "jobs.db"
    with closing(JobStore(path)) as store:
        kept = [generated(store, bytes(100_000)) for _ in range(10)]
    content = path.read_bytes()
    start = len(content) // 2
    path.write_bytes(content[:start] + bytes(8192) + content[start + 8192 :])

    async def story(async_store: AsyncStore) -> None:
        while not caplog.records:
            await asyncio.sleep(0.01)
        assert len((await async_store.call(async_store.store.history, 99)).jobs) == len(kept)

    play(JobStore(path), story)
    assert "jobs.db is damaged: " in caplog.text and "put a copy in its place" in caplog.text


def test_intact_file_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = JobStore(tmp_path / "jobs.db")
    generated(store)
    play(store, lambda _: asyncio.sleep(0.1))
    assert "damaged" not in caplog.text


def test_job_is_refused_while_too_many_images_wait_for_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.storage.write_queue.RETRY_DELAY", 0.01)
    is_full = True

    def write() -> None:
        if is_full:
            raise StoreUnavailable("the disk is full")

    async def story(async_store: AsyncStore) -> None:
        nonlocal is_full
        for _ in range(MAX_REFUSED_WRITES + 1):
            await async_store.add(job())
            async_store.write_later(write)
        await asyncio.sleep(0.05)
        with pytest.raises(StoreUnavailable, match=f"{MAX_REFUSED_WRITES + 1} writes wait for the disk"):
            await async_store.add(job())
        is_full = False
        await async_store.flush()
        assert await async_store.add(job())

    play(JobStore(None), story)


def test_closing_does_not_wait_for_a_call_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a call does for seconds when the network to the database is cut."""
    monkeypatch.setattr("server.jobs.storage.async_store.CLOSE_SECONDS", 0.1)
    begun, network_is_back = threading.Event(), threading.Event()
    waited: list[bool] = []

    def hang() -> None:
        begun.set()
        waited.append(network_is_back.wait(10))

    async def run() -> None:
        async_store = AsyncStore(JobStore(tmp_path / "jobs.db"), Retention())
        async_store.start()
        calling = asyncio.create_task(async_store.call_in_thread(hang))
        await asyncio.to_thread(begun.wait)
        async_store.close()
        await async_store.wait_closed()
        assert not waited
        await asyncio.wait([calling])
        assert calling.cancelled()
        network_is_back.set()
        while not async_store._closing.done():  # after the call
            await asyncio.sleep(0.01)
        assert waited == [True]

    asyncio.run(asyncio.wait_for(run(), 20))
    JobStore(tmp_path / "jobs.db").close()


def test_closed_store_has_ended_the_calls_under_way(tmp_path: Path) -> None:
    async def run() -> None:
        async_store = AsyncStore(JobStore(tmp_path / "jobs.db"), Retention())
        adding = asyncio.create_task(async_store.call_in_thread(async_store.store.add, job()))
        await asyncio.sleep(0)
        async_store.close()
        await async_store.wait_closed()
        assert (await adding).sequence == 1

    asyncio.run(asyncio.wait_for(run(), 20))
