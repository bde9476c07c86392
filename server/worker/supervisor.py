"""Keeps a worker process alive, and carries messages to it and from it.

Knows processes, sockets and patience; not jobs. Whoever listens hears every message of the worker, and when it is gone.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from engine.errors import ZImageError
from server.worker import messages
from server.worker.messages import FromWorker, Lost, Ready, Refused, Stop, ToWorker, frame, from_worker

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0  # seconds between two starts of a worker that keeps dying
MAX_DOUBLINGS = 32
LAST_BREATH = 0.5  # seconds in which a worker that has closed its end is to be gone


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """How long, in seconds, until a worker counts as hung.

    Attributes:
        load: to read, check and load plans; weights of 20 GB from a slow disk take minutes.
        silence: between two messages while it has something to generate; the longest step must fit in.
        stop: to end in order.
        backoff: before it is started again; doubled at each start that fails, up to MAX_BACKOFF.
    """

    load: float = 900.0
    silence: float = 120.0
    stop: float = 5.0
    backoff: float = 0.5

    def pause(self, failed_starts: int) -> float:
        """Before the next start."""
        doublings = min(failed_starts, MAX_DOUBLINGS)  # 2.0**1024, after a night without a GPU, is no float
        return min(self.backoff * 2.0**doublings, MAX_BACKOFF)


class WorkerListener(Protocol):
    """Who uses the worker. Calls come in the event loop, one after the other."""

    def on_message(self, message: FromWorker) -> None: ...

    def on_worker_ready(self) -> None:
        """A worker, the first or a new one, takes messages."""
        ...

    def on_worker_lost(self, reason: str) -> None:
        """It is gone, and with it whatever it was generating."""
        ...


class WorkerRefused(ZImageError):
    """A worker that cannot serve its plans, in its own words."""


class Supervisor:
    """One worker, replaced when it dies or hangs.

    Args:
        command: that starts a worker, to which the descriptor of its socket is added.
    """

    def __init__(
        self, command: Sequence[str], listener: WorkerListener, timeouts: WorkerTimeouts | None = None
    ) -> None:
        self.starts = 0
        self.launched = asyncio.Event()  # the first process runs, if only just
        self.is_ready = False
        self.failed_starts = 0  # in a row
        self.last_failure: str | None = None
        self._command, self._listener, self._timeouts = list(command), listener, timeouts or WorkerTimeouts()
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._heard, self._hung = 0.0, ""  # when it last said something; what it is ended for
        self._is_busy = False
        self._stopping = False
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Starts the first worker and waits until it is ready.

        Raises:
            WorkerRefused: why it cannot serve.
        """
        ready = asyncio.get_running_loop().create_future()
        self._keeping = asyncio.create_task(self._keep(ready), name="supervisor")
        await ready

    async def stop(self) -> None:
        """Ends the worker, in order if it lets itself be ended."""
        self._stopping = True
        if self._process is not None and self.is_ready:
            self.send(Stop())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), self._timeouts.stop)
        self._kill()
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping

    def send(self, message: ToWorker) -> None:
        """To the worker, if there is one; what one that dies did not read is lost."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def expect_messages(self, is_busy: bool) -> None:
        """Whether the worker has something to generate, so that its silence is suspicious."""
        if is_busy and not self._is_busy:
            self._heard = time.monotonic()
        self._is_busy = is_busy

    async def _keep(self, ready: "asyncio.Future[None]") -> None:
        """Starts workers until it is told to stop; the first one's refusal is the caller's to handle."""
        while not self._stopping:
            try:
                reason = await self._run(ready)
            except WorkerRefused as error:
                if not ready.done():
                    ready.set_exception(error)
                    return
                self.failed_starts += 1
                reason = str(error)
            except Exception as error:
                log.exception("a worker could not be started or understood")
                if not ready.done():
                    ready.set_exception(error)
                    return
                self.failed_starts += 1
                reason = f"{type(error).__name__}: {error}"
            if self._stopping:
                return
            self.last_failure = reason
            log.error("the worker is gone: %s; starting another", reason)
            self._listener.on_worker_lost(reason)
            await asyncio.sleep(self._timeouts.pause(self.failed_starts))

    async def _run(self, ready: "asyncio.Future[None]") -> str:
        """One worker's life; why it ended. Raises WorkerRefused if it never was ready."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await self._launch(theirs)
        self.starts += 1
        self.launched.set()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._heard, self._hung = time.monotonic(), ""
        watching = asyncio.create_task(self._watch(self._writer))
        was_ready, reason = False, ""
        try:
            while True:
                (length,) = messages.LENGTH.unpack(await reader.readexactly(messages.LENGTH.size))
                message = from_worker(await reader.readexactly(length))
                self._heard = time.monotonic()
                match message:
                    case Refused(text):
                        raise WorkerRefused(text)
                    case Lost(text):
                        reason = text
                        break
                    case Ready(unusable=[why, *_]) if not ready.done():
                        raise WorkerRefused(why)
                    case Ready(unusable=unusable):
                        for why in unusable:  # since the first start; images that ask for them fail by name
                            log.error("%s", why)
                        was_ready = self.is_ready = True
                        self.failed_starts = 0
                        self._listener.on_worker_ready()
                        if not ready.done():
                            ready.set_result(None)
                self._listener.on_message(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            reason = self._hung
        finally:
            watching.cancel()
            self.is_ready = False
            self._writer.close()
            self._writer = None
            status = await self._ended(self._process)
            self._process = None
        reason = reason or f"it ended with status {status}"
        if not was_ready:
            raise WorkerRefused(reason)
        return reason

    async def _launch(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        """A process that has its end of the socket pair."""
        command = [*self._command, str(theirs.fileno())]
        return await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()])

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        """Ends the connection of a worker that is silent though it has something to do."""
        while True:
            allowed = self._timeouts.silence if self.is_ready else self._timeouts.load
            left = allowed - (time.monotonic() - self._heard)
            if left <= 0 and (self._is_busy or not self.is_ready):
                self._hung = f"it said nothing for {allowed:.0f} s"
                writer.transport.abort()
                return
            await asyncio.sleep(min(max(left, 0.05), 1.0))

    async def _ended(self, process: asyncio.subprocess.Process) -> int | None:
        """Its status; None if even SIGKILL does not end it, as with a driver that hangs."""
        if not self._hung:  # it is on its way out; `kill` polls it, and then asyncio has no status to tell
            with suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), LAST_BREATH)
        self._kill()
        try:
            return await asyncio.wait_for(process.wait(), self._timeouts.stop)
        except TimeoutError:
            log.error("process %d cannot be killed; starting another beside it", process.pid)
            return None

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
