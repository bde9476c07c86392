"""Workers in threads with the interface of processes, so that tests see what they generate."""

import asyncio
import os
import socket
import sys
import threading
from contextlib import suppress

from fakes.loop import FakeLoop

from engine.plan.manifest import Manifest
from server.worker.supervisor import Supervisor, WorkerListener, WorkerTimeouts
from server.worker.worker import Worker

SHORT_TIMEOUTS = WorkerTimeouts(load=20, silence=1.0, stop=2, backoff=0.01)


class ThreadProcess:
    """A worker in a thread with the interface of a process. An exception ends it, as it would end a process."""

    pid = os.getpid()

    def __init__(self, loop: FakeLoop, manifest: Manifest, theirs: socket.socket) -> None:
        self.returncode: int | None = None
        self._sock = theirs.dup()
        self._worker = Worker(loop, manifest, self._sock, abandon=lambda: self._worker.stop())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        status = 1
        try:
            self._worker.run(0.0)
            status = 0
        except Exception as error:  # noqa: BLE001
            print(f"the worker died: {error!r}", file=sys.stderr)
        self.returncode = status
        with suppress(OSError):  # the server may have closed its end
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    async def wait(self) -> int:
        await asyncio.to_thread(self._thread.join)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        self._worker.stop()


class ThreadSupervisor(Supervisor):
    """Supervisor of workers in threads, so that tests see what they generate."""

    def __init__(self, loop: FakeLoop, manifest: Manifest, listener: WorkerListener) -> None:
        super().__init__([], listener, SHORT_TIMEOUTS)
        self._fake, self._manifest = loop, manifest

    async def _launch(self, theirs: socket.socket) -> ThreadProcess:
        self._fake._queue.clear()
        return ThreadProcess(self._fake, self._manifest, theirs)
