"""An image that two threads ask for: the loop, for its device time, and the thread that finishes it."""

import threading
from dataclasses import dataclass, field
from typing import Any

from fakes.loop_builder import sample

from engine.graph_runner import Decoded
from engine.scheduler.pending_image import PendingImage


@dataclass
class SlowEvent:
    """An event whose time is read slowly."""

    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    reads: int = 0

    def seconds_until(self, _later: Any) -> float:
        self.reads += 1
        self.entered.set()
        assert self.release.wait(30)
        return 0.5


def test_loop_waits_for_a_thread_that_reads_the_device_time() -> None:
    """Otherwise the loop goes on, reuses the timing events, and the thread reads events that are not over."""
    event, seconds = SlowEvent(), list[float]()
    pending = PendingImage(sample("a", 64), Decoded(None, None, event), event)  # type: ignore[arg-type]
    threads = [threading.Thread(target=lambda: seconds.append(pending.decoding_seconds())) for _ in range(2)]
    threads[0].start()
    assert event.entered.wait(30)
    threads[1].start()
    threads[1].join(0.1)
    reads = event.reads
    event.release.set()
    for thread in threads:
        thread.join()
    assert (reads, seconds) == (1, [0.5, 0.5])
