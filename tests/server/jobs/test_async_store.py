"""The store as the event loop uses it, when writes are slow or fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from server.errors import StoreUnavailable
from server.jobs.async_store import FLUSH_TIMEOUT, AsyncStore
from server.jobs.retention import Retention
from server.jobs.store import JobStore

Story = Callable[[AsyncStore], Awaitable[None]]


def play(store: JobStore, story: Story) -> None:
    async def run() -> None:
        kept = AsyncStore(store, Retention(max_bytes=1 << 30))
        kept.start()
        try:
            await story(kept)
        finally:
            kept.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_who_waits_for_earlier_writes_does_not_wait_for_later_ones(tmp_path: Path) -> None:
    async def story(kept: AsyncStore) -> None:
        async def busy() -> None:
            while True:
                kept.write_later(lambda: time.sleep(0.004))
                await asyncio.sleep(0.005)

        load = asyncio.create_task(busy())
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await kept.flush()
        assert time.monotonic() - started < FLUSH_TIMEOUT / 2
        load.cancel()

    play(JobStore(tmp_path / "jobs.db"), story)


def test_a_write_that_is_tried_again_is_pending() -> None:
    refusals = 1

    def write() -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise StoreUnavailable("the disk is full")

    async def story(kept: AsyncStore) -> None:
        for _ in range(3):
            kept.write_later(write)
        assert kept.pending_writes == 3
        await asyncio.sleep(0.1)
        assert kept.pending_writes == 3
        await kept.flush()
        assert kept.pending_writes == 0

    play(JobStore(None), story)


def test_what_nobody_expected_of_a_store_does_not_end_its_pruning() -> None:
    class Odd(JobStore):
        calls = 0

        def prune(self, _: Retention) -> int:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("odd")
            return 0

    store = Odd(None)

    async def story(kept: AsyncStore) -> None:
        await asyncio.sleep(0.05)
        store.bytes_since_prune = 1 << 30
        kept.write_later(lambda: None)
        await asyncio.sleep(0.05)
        assert store.calls == 2

    play(store, story)
