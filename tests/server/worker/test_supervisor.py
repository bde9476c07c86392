"""Restarts of workers, and the reasons for their ends."""

import asyncio
import sys

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
