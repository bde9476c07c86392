"""Restarts of workers, and the reasons for their ends."""

import asyncio
import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from server.worker.messages import FromWorker
from server.worker.supervisor import MAX_BACKOFF, Supervisor, WorkerTimeouts

EXITING = """
import socket, sys, time
from server.worker.messages import Ready, encode_frame
sock = socket.socket(fileno=int(sys.argv[1]))
sock.sendall(encode_frame(Ready(0.0)))
sock.close()
time.sleep(0.1)  # an interpreter takes some time to exit
sys.exit(7)
"""


class FakeListener:
    def __init__(self) -> None:
        self.lost: asyncio.Queue[str] = asyncio.Queue()

    def on_message(self, message: FromWorker) -> None: ...

    def on_worker_ready(self) -> None: ...

    def on_worker_lost(self, reason: str) -> None:
        self.lost.put_nowait(reason)


def test_backoff_doubles_up_to_its_maximum_for_any_number_of_failures() -> None:
    pauses = [WorkerTimeouts(backoff=0.5).pause(failed) for failed in range(5000)]
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[10:] == [MAX_BACKOFF] * 4990


def test_worker_that_exits_by_itself_reports_its_status() -> None:
    async def story() -> None:
        listener = FakeListener()
        supervisor = Supervisor([sys.executable, "-c", EXITING], listener, WorkerTimeouts(backoff=20.0))
        await supervisor.start()
        assert await asyncio.wait_for(listener.lost.get(), 20) == "it ended with status 7"
        await supervisor.stop()

    asyncio.run(story())


class ShortSupervisor(Supervisor):
    """Cannot launch its worker for some times, for want of something."""

    def __init__(self, code: int, times: int, listener: FakeListener) -> None:
        super().__init__([sys.executable, "-c", EXITING], listener, WorkerTimeouts(backoff=0.001))
        self._error, self._left = OSError(code, os.strerror(code)), times

    async def _launch(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        if self._left:
            self._left -= 1
            raise self._error
        return await super()._launch(theirs)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN])
def test_shortage_of_the_server_is_not_a_failed_start_of_the_worker(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        listener = FakeListener()
        supervisor = ShortSupervisor(code, 8, listener)
        await asyncio.wait_for(supervisor.start(), 30)
        assert (supervisor.starts, supervisor.failed_starts, listener.lost.empty()) == (1, 0, True)
        supervisor._left = 8
        assert await asyncio.wait_for(listener.lost.get(), 20) == "it ended with status 7"
        await asyncio.wait_for(listener.lost.get(), 20)  # a second worker has run
        assert supervisor.failed_starts == 0
        await supervisor.stop()

    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    asyncio.run(story())
    assert len(list(descriptors.iterdir())) <= before
    lines = [record.getMessage() for record in caplog.records if "cannot start a worker" in record.getMessage()]
    assert len(lines) == 16 and all("ulimit -n" in line and os.strerror(code) in line for line in lines)


def test_missing_program_is_a_failed_start() -> None:
    async def story() -> None:
        with pytest.raises(FileNotFoundError):
            await Supervisor(["/no/such/program"], FakeListener()).start()

    asyncio.run(story())
