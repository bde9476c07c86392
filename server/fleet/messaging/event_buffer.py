"""Events that wait for a slow reader: a bounded number, from which previews are dropped first.

Knows events and their bytes; no broker.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.fleet.messaging.events import Event, JobEnded, Preview, StepsDone

MAX_EVENTS = 10_000
MAX_BUFFER_BYTES = 32 << 20  # of previews, nearly all of it
OVERHEAD = 200  # bytes of an event beside its message
PROGRESS_EVERY = 0.25  # seconds between two progress events of a job


@dataclass(frozen=True, slots=True)
class BufferedEvent:
    """An event with its place in the order, its encoded bytes and the monotonic time of its arrival."""

    number: int
    event: Event
    body: bytes
    time: float


class EventBuffer:
    """A queue for threads. When it is full, the oldest previews are dropped, then progress, then other events."""

    def __init__(self, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BUFFER_BYTES) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._waiting: tuple[deque[BufferedEvent], ...] = (deque(), deque(), deque())  # the first is dropped first
        self._number = self._bytes = self.dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    def put(self, event: Event, body: bytes) -> None:
        """Append an event; neither waits nor fails. After `close`, do nothing."""
        with self._changed:
            if self._is_closed:
                return
            self._number += 1
            self._waiting[_rank(event)].append(BufferedEvent(self._number, event, body, time.monotonic()))
            self._bytes += len(body) + OVERHEAD
            while self._bytes > self._max_bytes or len(self) > self._max_events:
                self._pop(next(queue for queue in self._waiting if queue))
                self.dropped += 1
            self._changed.notify()

    def get(self, timeout: float | None = None) -> BufferedEvent | None:
        """Return the oldest event; None after `timeout` seconds, or when the buffer is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or any(self._waiting), timeout)
            queues = [queue for queue in self._waiting if queue]
            return self._pop(min(queues, key=lambda queue: queue[0].number)) if queues else None

    def close(self) -> None:
        """Take no more events; those that wait can still be read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _pop(self, queue: deque[BufferedEvent]) -> BufferedEvent:
        item = queue.popleft()
        self._bytes -= len(item.body) + OVERHEAD
        return item


class ProgressLimit:
    """Holds back progress of a job, of which only the newest counts, for PROGRESS_EVERY seconds after the last one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}  # when the job's next progress may go, by the clock
        self._held: dict[str, BufferedEvent] = {}

    def admits(self, item: BufferedEvent) -> bool:
        """Return True if an event may go now. Progress that may not is held, in place of what was held before."""
        if isinstance(item.event, JobEnded):
            self._held.pop(item.event.job, None)
        if not isinstance(item.event, StepsDone):
            return True
        job = item.event.job
        if job in self._due:
            self._held[job] = item
            return False
        self._due[job] = self._clock() + PROGRESS_EVERY
        return True

    def released(self) -> list[BufferedEvent]:
        """Return held progress that may go now."""
        now = self._clock()
        for job in [job for job, due in self._due.items() if due <= now]:
            del self._due[job]
        return [item for item in map(self._held.pop, self._held.keys() - self._due.keys()) if self.admits(item)]

    @property
    def wait(self) -> float | None:
        """Seconds until `released` has something to return; None if nothing is held."""
        due = min((self._due.get(job, 0.0) for job in self._held), default=None)
        return None if due is None else max(0.0, due - self._clock())


def _rank(event: Event) -> int:
    return 0 if isinstance(event, Preview) else 1 if isinstance(event, StepsDone) else 2
