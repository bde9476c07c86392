"""Keeps one worker process running and carries messages to it and from it.

Knows processes, sockets and timeouts; not jobs.
"""

import asyncio
import errno
import itertools
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from server.errors import WorkerStartFailed
from server.worker import messages
from server.worker.messages import (
    Alive,
    Fatal,
    FromWorker,
    InvalidMessage,
    Ready,
    StartFailed,
    Stop,
    ToWorker,
    decode_from_worker,
    encode_frame,
)

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0  # seconds between two starts of a worker that keeps dying
MAX_DOUBLINGS = 32
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)  # of the server, not of the worker
EXIT_SECONDS = 0.5  # from the end of the connection to the worker's own exit


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """Seconds after which a worker counts as hung.

    Attributes:
        load: for reading, checking and loading plans; weights of 20 GB from a slow disk take minutes.
        silence: between two messages, and for one step or one portion of a change of LoRAs; longer than the longest of
            these.
        stop: for its exit after Stop.
        backoff: before the next start; doubled at each start that fails, up to MAX_BACKOFF.
    """

    load: float = 900.0
    silence: float = 120.0
    stop: float = 5.0
    backoff: float = 0.5

    def pause(self, failed_starts: int) -> float:
        """Return the seconds to wait before the next start."""
        doublings = min(failed_starts, MAX_DOUBLINGS)  # 2.0**1024 overflows; a night without a GPU gets there
        return min(self.backoff * 2.0**doublings, MAX_BACKOFF)


class WorkerListener(Protocol):
    """Receiver of a worker's messages. Calls come in the event loop, one after the other."""

    def on_message(self, message: FromWorker) -> None: ...

    def on_worker_ready(self) -> None:
        """Handle that a worker, the first or a new one, takes messages."""
        ...

    def on_worker_lost(self, reason: str) -> None:
        """Handle that the worker is gone, and with it all that it was generating."""
        ...


class Supervisor:
    """One worker, replaced when it dies or hangs. A `WorkerLink` of `server.jobs.devices.device_queue`.

    Args:
        command: starts a worker; the descriptor of its socket is appended.
        name: of the worker, in log lines.
        environment: variables of the worker, beside those of this process.
        goes_on: True to start another worker after a first one that was never ready.

    Attributes:
        launched: set when the first process runs, before it has loaded the plans.
    """

    def __init__(
        self,
        command: Sequence[str],
        listener: WorkerListener,
        timeouts: WorkerTimeouts | None = None,
        *,
        name: str = "the worker",
        environment: Mapping[str, str] | None = None,
        goes_on: bool = False,
    ) -> None:
        self.launched = asyncio.Event()
        self.is_ready = False
        self.starts = 0
        self.failed_starts = 0  # in a row
        self.last_failure: str | None = None
        self._command, self._listener, self._timeouts = list(command), listener, timeouts or WorkerTimeouts()
        self._name, self._environment, self._goes_on = name, dict(environment or {}), goes_on
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._messages = 0  # from all workers
        self._timeout_reason = ""  # set when a worker is ended for its silence
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the first worker and wait until it is ready.

        Raises:
            WorkerStartFailed: the worker could not start, with the reason.
        """
        ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running(ready), name="supervisor")
        await ready

    async def stop(self) -> None:
        """Ask the worker to stop; kill it if it does not."""
        self._is_stopping = True
        if self._process is not None and self.is_ready:
            self.send(Stop())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), self._timeouts.stop)
        self._kill()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def send(self, message: ToWorker) -> None:
        """Send a message if there is a worker. What it does not read before it dies is lost."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def _keep_running(self, ready: "asyncio.Future[None]") -> None:
        """Start workers until `stop`. The first start's failure goes to `ready`, and is the last unless it goes on."""
        while not self._is_stopping:
            try:
                reason = await self._run(ready)
            except Exception as error:
                if not isinstance(error, WorkerStartFailed):
                    log.exception("starting a worker or reading its messages failed")
                if not ready.done():
                    ready.set_exception(error)
                    if not self._goes_on:
                        return
                self.failed_starts += 1
                reason = str(error) if isinstance(error, WorkerStartFailed) else f"{type(error).__name__}: {error}"
            if self._is_stopping:
                return
            self.last_failure = reason
            log.error("%s is gone: %s; starting another", self._name, reason)
            self._listener.on_worker_lost(reason)
            await asyncio.sleep(self._timeouts.pause(self.failed_starts))

    async def _run(self, ready: "asyncio.Future[None]") -> str:
        """Run one worker and return the reason for its end. Raises WorkerStartFailed if it was never ready."""
        ours, self._process = await self._launch_when_possible()
        self.starts += 1
        self.launched.set()
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        except OSError:
            self._kill()
            raise
        self._timeout_reason = ""
        watching = asyncio.create_task(self._watch(self._writer))
        try:
            reason = await self._read_messages(reader, ready)
        except (asyncio.IncompleteReadError, ConnectionError):
            reason = self._timeout_reason
        except InvalidMessage as error:
            reason = f"it sent {error}"
        finally:
            watching.cancel()
            was_ready, self.is_ready = self.is_ready, False
            self._writer.close()
            self._writer = None
            status = await self._wait_for_exit(self._process)
            self._process = None
        reason = reason or f"it ended with status {status}"
        if not was_ready:
            raise WorkerStartFailed(reason)
        return reason

    async def _read_messages(self, reader: asyncio.StreamReader, ready: "asyncio.Future[None]") -> str:
        """Pass messages on until the worker gives up, and return its reason.

        Raises:
            WorkerStartFailed: the plans cannot be served, or one of the LoRAs at the first start.
            IncompleteReadError, ConnectionError: the connection ended.
            InvalidMessage: the worker sent garbage.
        """
        while True:
            (length,) = messages.LENGTH.unpack(await reader.readexactly(messages.LENGTH.size))
            if length > messages.MAX_BYTES:
                raise InvalidMessage(f"a message of {length} bytes; at most {messages.MAX_BYTES} are read")
            message = decode_from_worker(await reader.readexactly(length))
            self._messages += 1
            match message:
                case Alive(busy) if busy > self._timeouts.silence:
                    self._timeout_reason = f"it was busy with one step for {busy:.0f} s"
                    return self._timeout_reason
                case StartFailed(text):
                    raise WorkerStartFailed(text)
                case Fatal(text):
                    return text
                case Ready(unusable_loras=[why, *_]) if not ready.done():
                    raise WorkerStartFailed(why)
                case Ready(unusable_loras=reasons):
                    for why in reasons:  # changed since the first start; images with these LoRAs fail by name
                        log.error("%s", why)
                    self.is_ready, self.failed_starts = True, 0
                    self._listener.on_worker_ready()
                    if not ready.done():
                        ready.set_result(None)
            self._listener.on_message(message)

    async def _launch_when_possible(self) -> tuple[socket.socket, asyncio.subprocess.Process]:
        """Launch a process and return our end of its socket pair; wait while the server has no descriptor or memory.

        This is no failure of the worker: `failed_starts`, from which jobs fail, does not count it.
        """
        for attempt in itertools.count():
            try:
                ours, theirs = socket.socketpair()
                theirs.setblocking(True)  # a Celery that stops changes the default of the process for a while
                with theirs:
                    try:
                        return ours, await self._launch(theirs)
                    except BaseException:
                        ours.close()
                        raise
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                seconds = self._timeouts.pause(attempt)
                log.error(
                    "cannot start a worker: %s; trying again in %.1f s. Raise the limits of open files and processes "
                    "(ulimit -n, ulimit -u), or free memory",
                    error,
                    seconds,
                )
                await asyncio.sleep(seconds)
        raise AssertionError

    async def _launch(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        """Start a process that inherits its end of the socket pair."""
        command = [*self._command, str(theirs.fileno())]
        environment = {**os.environ, **self._environment}
        return await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()], env=environment)

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        """Abort the connection of a worker that loads or is silent for too long.

        Only time in which this server was awake counts: after the machine slept, a healthy worker has time to report.
        """
        silent, seen = 0.0, self._messages
        while silent < (allowed := self._timeouts.silence if self.is_ready else self._timeouts.load):
            pause = min(allowed / 4, 1.0)
            await asyncio.sleep(pause)
            silent = silent + pause if self._messages == seen else 0.0
            seen = self._messages
        self._timeout_reason = f"it sent nothing for {allowed:.0f} s"
        writer.transport.abort()

    async def _wait_for_exit(self, process: asyncio.subprocess.Process) -> int | None:
        """Return its exit status; None if even SIGKILL does not end it, as with a driver that hangs."""
        if not self._timeout_reason:  # wait first: `kill` polls the process, and then asyncio has no status
            with suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), EXIT_SECONDS)
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
