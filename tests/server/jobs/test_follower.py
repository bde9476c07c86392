"""Events that wait for a client which follows a job and reads slowly."""

import asyncio

from fakes.jobs import job

from server.jobs.follower import MAX_PREVIEW_BYTES, Follower, ImageFinished, JobPreview, Progress
from server.jobs.job import JobState

MB = 1 << 20


def read(follower: Follower, events: int) -> list[object]:
    async def story() -> list[object]:
        return [await asyncio.wait_for(follower.get(), 20) for _ in range(events)]

    return asyncio.run(story())


def test_events_of_a_prompt_reader_come_in_their_order() -> None:
    follower, ended = Follower(), job()
    sent = [JobPreview(0, 1, b"a"), JobPreview(0, 2, b"b"), ImageFinished(0), JobPreview(1, 1, b"c"), ImageFinished(1)]
    for event in (*sent, ended):
        follower.put(event)
    assert read(follower, 6) == [*sent, ended]


def test_slow_reader_gets_the_newest_previews_every_image_and_the_end() -> None:
    follower, ended = Follower(), job()
    for done in range(1000):
        follower.put(Progress(JobState.RUNNING, 0, 0.0, done, 1000))
        follower.put(JobPreview(done % 4, done, bytes(MB)))
    for index in range(4):
        follower.put(ImageFinished(index))
    follower.put(ended)
    assert follower._preview_bytes <= MAX_PREVIEW_BYTES
    events = read(follower, 9)
    assert [event.done for event in events[:4]] == [996, 997, 998, 999]
    assert events[4:8] == [*map(ImageFinished, range(4))]
    assert events[8:] == [ended]


def test_preview_larger_than_the_bound_is_kept_until_the_next_one() -> None:
    follower = Follower()
    for done in (1, 2):
        follower.put(JobPreview(0, done, bytes(MAX_PREVIEW_BYTES + 1)))
    follower.put(ImageFinished(0))
    assert [type(event) for event in read(follower, 2)] == [JobPreview, ImageFinished]


def test_reader_without_images_to_read_gets_the_newest_progress() -> None:
    follower = Follower()
    for done in range(3):
        follower.put(Progress(JobState.RUNNING, 0, 0.0, done, 3))
    assert read(follower, 1) == [Progress(JobState.RUNNING, 0, 0.0, 2, 3)]
