"""Life signs of a worker process, from a thread that does nothing else.

Knows how long other threads have been busy; not with what.
"""

import threading
from collections.abc import Callable
from types import TracebackType

from server.worker.messages import Alive

EVERY = 0.5  # seconds


class Activity:
    """A thread's work, piece by piece: `with activity:` encloses one piece."""

    def __init__(self, signs: "LifeSigns") -> None:
        self._signs = signs
        self.began: int | None = None  # tick at which the current piece began

    def __enter__(self) -> None:
        self.began = self._signs.ticks

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.began = None


class LifeSigns:
    """Sends `Alive` every EVERY seconds.

    Time is counted in ticks of this thread: while the machine sleeps or the process is stopped, it does not pass.

    Args:
        send: takes a message to the server, from any thread.

    Attributes:
        ticks: messages sent so far.
    """

    def __init__(self, send: Callable[[Alive], None]) -> None:
        self.ticks = 0
        self._send = send
        self._activities: list[Activity] = []
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="life signs", daemon=True)

    def activity(self) -> Activity:
        """Add an activity to watch."""
        self._activities.append(Activity(self))
        return self._activities[-1]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_stopped.set()

    def _run(self) -> None:
        while not self._is_stopped.wait(EVERY):
            self.ticks += 1
            began = [tick for activity in self._activities if (tick := activity.began) is not None]
            self._send(Alive(EVERY * (self.ticks - min(began, default=self.ticks))))
