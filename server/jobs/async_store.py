"""The job store as the event loop uses it: reads are waited for, writes follow in order. Knows no jobs' meaning."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from server.errors import StoreUnavailable
from server.jobs.store import JobStore

log = logging.getLogger(__name__)

T = TypeVar("T")
Write = tuple[Callable[[], object], Callable[[], object]]  # what is written, and what follows once it is

PRUNE_EVERY = 600.0  # seconds
PATIENCE = 2.0  # seconds that somebody may wait for earlier writes
GATHER = 0.002  # seconds that writes wait for others, while answers go out before them
RETRY = 1.0  # seconds between two attempts to write what the disk did not take


class AsyncStore:
    """One store, from one event loop.

    Args:
        keep: seconds for which jobs that ended are kept.
        keep_bytes: of them and their images.
    """

    def __init__(self, store: JobStore, keep: float, keep_bytes: int) -> None:
        self.store = store
        self._keep, self._keep_bytes = keep, keep_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")  # whose order is that of the calls
        self._away = 0  # calls that are in the thread, which has the store to itself meanwhile
        self._writes: asyncio.Queue[Write] = asyncio.Queue()
        self._pending = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._unpruned = 0  # bytes
        self._much_was_kept = asyncio.Event()

    @property
    def pending(self) -> int:
        """Writes that the store has not taken yet."""
        return self._pending

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._prune())]

    def close(self) -> None:
        """What is not written by now is not written."""
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown()
        self.store.close()

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """The result of a method of the store. Raises what it raises."""
        if self.store.is_in_memory and not self._away:  # no disk to wait for: to a thread and back takes longer
            return function(*args)
        return await self._in_thread(function, *args)

    def later(self, write: Callable[[], object], then: Callable[[], object] = lambda: None) -> None:
        """Writes in the background, in order, again and again until the disk takes it."""
        self._pending += 1
        self._writes.put_nowait((write, then))

    async def written(self) -> None:
        """Waits until all writes so far are done. Raises StoreUnavailable if that takes too long."""
        if not self._pending:
            return
        done = asyncio.Event()
        self.later(lambda: None, then=done.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await done.wait()
        except TimeoutError as error:
            raise StoreUnavailable("the job store has not taken what was to be written before") from error

    def kept(self, size: int) -> None:
        """So many bytes are new: when they are many, old ones go before their time."""
        self._unpruned += size
        if self._unpruned > self._keep_bytes // 8:
            self._much_was_kept.set()

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        call = asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        self._away += 1
        call.add_done_callback(self._back)
        return await asyncio.shield(call)  # whoever is cancelled leaves it running

    def _back(self, _: "asyncio.Future[T]") -> None:
        self._away -= 1

    async def _write(self) -> None:
        while True:
            writes = deque([await self._writes.get()])
            await asyncio.sleep(GATHER)
            while not self._writes.empty():  # together: the way to the thread and back costs more than a write
                writes.append(self._writes.get_nowait())
            while writes:
                written: list[Write] = []
                try:
                    await self.call(_run, writes, written)
                except StoreUnavailable as error:
                    log.error("%s; it is tried again, and meanwhile kept in memory", error)
                    await asyncio.sleep(RETRY)
                except Exception:
                    log.exception("a write to the store was given up")
                    written.append(writes.popleft())
                for _, then in written:
                    then()
                    self._pending -= 1

    async def _prune(self) -> None:
        """Forgets what has been kept long enough."""
        while True:
            self._unpruned = 0
            try:
                while await self._in_thread(self.store.prune, time.time() - self._keep, self._keep_bytes):
                    pass  # a few at a time, so that others have the store in between
            except StoreUnavailable as error:
                log.error("%s; old jobs are kept for now", error)
            except Exception:
                log.exception("old jobs are kept for now")
            with suppress(TimeoutError):
                async with asyncio.timeout(PRUNE_EVERY):
                    await self._much_was_kept.wait()
            self._much_was_kept.clear()


def _run(writes: deque[Write], written: list[Write]) -> None:
    """Moves what the store has taken from one to the other, up to the first that it does not take."""
    while writes:
        writes[0][0]()
        written.append(writes.popleft())
