"""Life signs of a worker process, from a thread that does nothing else.

Knows how long other threads have been busy; not with what.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.worker.messages import Alive

EVERY = 0.5  # seconds


class LifeSigns:
    """Sends `Alive` every EVERY seconds.

    Time is counted in ticks of this thread: while the machine sleeps or the process is stopped, it does not pass.

    Args:
        send: takes a message to the server, from any thread.
    """

    def __init__(self, send: Callable[[Alive], None]) -> None:
        self._send = send
        self._ticks = 0
        self._began: dict[object, int] = {}  # tick at which each piece of work began
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="life signs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_stopped.set()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Enclose a piece of work, in any thread. It hangs if it takes too long."""
        piece = object()
        self._began[piece] = self._ticks
        try:
            yield
        finally:
            del self._began[piece]

    def _run(self) -> None:
        while not self._is_stopped.wait(EVERY):
            self._ticks += 1
            oldest = min(list(self._began.values()), default=self._ticks)
            self._send(Alive(EVERY * (self._ticks - oldest)))
