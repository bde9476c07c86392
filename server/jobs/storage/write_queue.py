"""Writes to a job store that follow in the background, in order. Knows calls; not what they write."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from server.errors import StoreUnavailable

log = logging.getLogger(__name__)

Write = tuple[Callable[[], object], Callable[[], object], "asyncio.Future[object]"]  # see `WriteQueue.put`

BATCH_DELAY = 0.002  # seconds in which writes gather, so that one trip to the thread does for all
RETRY_DELAY = 1.0  # seconds between two attempts at a write that the disk refuses


class WriteQueue:
    """Writes that wait for the store. Used from one event loop, in which `run` runs.

    Args:
        call: awaits a function that uses the store, as `AsyncStore.call` does.
        on_written: called after some writes.

    Attributes:
        pending: writes that the store has not taken yet.
        is_refused: True if it did not take the last one.
    """

    def __init__(self, call: Callable[..., Any], on_written: Callable[[], object]) -> None:
        self.pending = 0
        self.is_refused = False
        self._call, self._on_written = call, on_written
        self._waiting: asyncio.Queue[Write] = asyncio.Queue()

    def put(self, write: Callable[[], object], then: Callable[[], object]) -> "asyncio.Future[object]":
        """Write after all earlier writes, again and again until the disk takes it; see `AsyncStore.write_later`."""
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.pending += 1
        self._waiting.put_nowait((write, then, done))
        return done

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            writes = deque([await self._waiting.get()])
            await asyncio.sleep(BATCH_DELAY)
            while not self._waiting.empty():
                writes.append(self._waiting.get_nowait())
            while writes:
                await self._write(writes)
            self._on_written()

    async def _write(self, writes: deque[Write]) -> None:
        """Write up to the first one that is refused."""
        done: list[tuple[Write, object]] = []
        try:
            await self._call(_run, writes, done)
            self.is_refused = False
        except StoreUnavailable as error:
            self.is_refused = True
            log.error("%s; the write is kept in memory and tried again", error)
            await asyncio.sleep(RETRY_DELAY)
        except Exception:
            log.exception("a write to the job store failed and is dropped")
            done.append((writes.popleft(), None))
        for (_, then, future), result in done:
            try:
                then()
            except Exception:
                log.exception("what follows a write failed")
            if not future.done():  # it was cancelled with a task that awaited it
                future.set_result(result)
            self.pending -= 1


def _run(writes: deque[Write], done: list[tuple[Write, object]]) -> None:
    """Move the writes that the store takes from `writes` to `done`, with their results, up to the first refused one."""
    while writes:
        result = writes[0][0]()
        done.append((writes.popleft(), result))
