"""Tests of the buffer of events: what is dropped first, and the bound on its memory."""

import threading

import pytest

from server.fleet.messaging import events
from server.fleet.messaging.event_buffer import PROGRESS_EVERY, BufferedEvent, EventBuffer, ProgressLimit
from server.fleet.messaging.events import Event, ImageStored, JobEnded, Preview, StepsDone


def put(buffer: EventBuffer, *items: Event) -> None:
    for event in items:
        buffer.put(event, events.encode(event))


def drain(buffer: EventBuffer) -> list[Event]:
    buffer.close()
    return [item.event for item in iter(buffer.get, None)]


def preview(index: int, size: int = 0) -> Preview:
    return Preview("job", index, 1, b"x" * size)


def test_events_keep_their_order_across_kinds() -> None:
    buffer, sent = (
        EventBuffer(),
        [preview(0), ImageStored("job", 0), StepsDone("job", 1, 8), preview(1), JobEnded("job")],
    )
    put(buffer, *sent)
    assert drain(buffer) == sent
    assert buffer.dropped == 0


def test_full_buffer_drops_oldest_previews_then_progress_then_others() -> None:
    buffer = EventBuffer(max_events=4)
    put(buffer, JobEnded("a"), StepsDone("a", 1, 8), preview(0), preview(1))
    put(buffer, JobEnded("b"))
    put(buffer, JobEnded("c"))
    put(buffer, JobEnded("d"))
    assert buffer.dropped == 3
    put(buffer, JobEnded("e"))
    assert drain(buffer) == [JobEnded("b"), JobEnded("c"), JobEnded("d"), JobEnded("e")]


def test_bytes_of_previews_are_bounded() -> None:
    buffer = EventBuffer(max_bytes=100_000)
    put(buffer, *(preview(index, 40_000) for index in range(50)), ImageStored("job", 0))
    assert drain(buffer) == [preview(48, 40_000), preview(49, 40_000), ImageStored("job", 0)]


def test_event_larger_than_the_buffer_is_dropped_alone() -> None:
    buffer = EventBuffer(max_bytes=100_000)
    put(buffer, ImageStored("job", 0), preview(0, 200_000))
    assert drain(buffer) == [ImageStored("job", 0)]


def test_get_waits_for_an_event_and_returns_none_at_the_timeout() -> None:
    buffer = EventBuffer()
    assert buffer.get(timeout=0.01) is None
    timer = threading.Timer(0.05, put, (buffer, JobEnded("job")))
    timer.start()
    item = buffer.get(timeout=30)
    timer.join()
    assert item is not None and item.event == JobEnded("job")


def test_closed_buffer_takes_nothing_and_wakes_readers() -> None:
    buffer = EventBuffer()
    timer = threading.Timer(0.05, buffer.close)
    timer.start()
    assert buffer.get() is None
    timer.join()
    put(buffer, JobEnded("job"))
    assert drain(buffer) == []


class Progress:
    """A limit with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.limit = ProgressLimit(lambda: self.now)

    def admits(self, event: Event) -> bool:
        return self.limit.admits(BufferedEvent(0, event, b"", self.now))

    def released(self) -> list[Event]:
        return [item.event for item in self.limit.released()]


@pytest.fixture
def progress() -> Progress:
    return Progress()


def test_progress_of_a_job_goes_four_times_a_second_with_its_newest_value(progress: Progress) -> None:
    assert progress.admits(StepsDone("a", 1, 8))
    assert not progress.admits(StepsDone("a", 2, 8))
    assert not progress.admits(StepsDone("a", 3, 8))
    assert progress.admits(StepsDone("b", 1, 8)), "another job has its own limit"
    assert progress.limit.wait == pytest.approx(PROGRESS_EVERY)
    assert progress.released() == []
    progress.now += PROGRESS_EVERY
    assert progress.limit.wait == 0
    assert progress.released() == [StepsDone("a", 3, 8)]
    assert progress.limit.wait is None
    assert not progress.admits(StepsDone("a", 4, 8)), "the released event counts"
    assert progress.admits(ImageStored("a", 0)), "only progress is held back"


def test_held_progress_is_dropped_when_its_job_ends(progress: Progress) -> None:
    progress.admits(StepsDone("a", 1, 8))
    progress.admits(StepsDone("a", 2, 8))
    assert progress.admits(JobEnded("a"))
    progress.now += 1
    assert progress.released() == []


def test_limit_forgets_jobs_of_the_past(progress: Progress) -> None:
    for number in range(1000):
        progress.now += 0.01
        progress.admits(StepsDone(f"job {number}", 1, 8))
        progress.released()
    assert len(progress.limit._due) <= 1 + PROGRESS_EVERY / 0.01
