"""Refusals: a full queue and deadlines."""

import asyncio
import time
from dataclasses import replace

import pytest
from fakes.worker_link import FakeLink, finished, job, play

from server.errors import DeadlineUnreachable, JobRefused, QueueFull
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import Job
from server.worker.messages import Cancel, Started


def test_full_queue_refuses_with_a_retry_time_and_still_returns_known_keys() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        await jobs.submit(job("first"))
        jobs.worker_queue.queues[0].on_message(finished("first"))  # which took one second
        for number in range(8):
            await jobs.submit(job(f"{number}", key=f"key {number}", client=f"client {number}"))
        with pytest.raises(JobRefused) as refusal:
            await jobs.submit(job("late"))
        assert refusal.value.code == "queue_full"
        assert refusal.value.retry_after == pytest.approx(2.0, rel=0.01)  # seconds of a fourth of the queue
        assert (await jobs.submit(job("again", key="key 3"))).id == "3"
        await jobs.cancel("5")
        assert Cancel("5") in link.sent
        await jobs.submit(job("late"))

    play(story, limits=Limits(queue=8))


def test_client_cannot_take_the_last_places_of_the_queue() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        for number in range(12):
            await jobs.submit(job(f"{number}", client="flood"))
        for _ in range(2):
            with pytest.raises(QueueFull, match="12 of your jobs are unfinished"):
                await jobs.submit(job("more", client="flood"))
        for number in range(4):
            await jobs.submit(job(f"other {number}", client=f"client {number}"))
        with pytest.raises(QueueFull, match="The queue is full"):
            await jobs.submit(job("late", client="late"))

    play(story, limits=Limits(queue=16))


def test_deadline_of_one_client_does_not_depend_on_the_queue_of_another() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(job("first"))
        jobs.worker_queue.queues[0].on_message(finished("first"))  # which took one second
        for number in range(50):
            await jobs.submit(job(f"{number}", client="flood"))
        jobs.worker_queue.queues[0].on_message(Started("0:0"))
        await jobs.submit(job("soon", deadline=time.time() + 2.5, client="single"))
        soon = await jobs.get("soon")
        assert soon is not None and (await jobs.progress(soon)).position == 1
        with pytest.raises(DeadlineUnreachable):
            await jobs.submit(job("late", deadline=time.time() + 2.5, client="flood"))

    play(story)


def connected(name: str, client: str = "", n: int = 1) -> Job:
    """A job whose client waits for the answer."""
    return replace(job(name, client=client, n=n), durable=False)


def test_job_that_would_wait_too_long_for_others_is_refused_if_its_client_waits() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(job("first"))
        jobs.worker_queue.queues[0].on_message(finished("first"))  # which took one second
        for number in range(3):
            await jobs.submit(job(f"{number}"))
        with pytest.raises(QueueFull, match=r"in about 3 s, and clients wait 2\.5 s at most") as refusal:
            await jobs.submit(connected("late"))
        assert refusal.value.retry_after == pytest.approx(0.5)
        await jobs.submit(connected("of another client", client="other"))
        await jobs.submit(job("task"))
        for placed in ("of another client", "task"):
            await jobs.cancel(placed)
        jobs.worker_queue.queues[0].on_message(finished("0"))
        await jobs.submit(connected("many images", n=5))  # its own are no wait

    play(story, limits=Limits(wait=2.5))


def test_concurrent_submissions_cannot_exceed_the_queue_limit() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        submissions = (jobs.submit(job(f"{number}")) for number in range(5))
        answers = await asyncio.gather(*submissions, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Job, Job, QueueFull, QueueFull, QueueFull]
        assert "with 2 unfinished jobs" in str(answers[2])  # those that are being stored count

    play(story, limits=Limits(queue=2))


def test_missed_deadline_fails_the_job_and_stops_its_images() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        accepted = await jobs.submit(job("late", deadline=time.time() + 0.5))
        ended, _ = await jobs.wait(accepted)
        assert ended.error.code == "deadline_exceeded"
        assert Cancel("late") in link.sent

    play(story)


def test_unreachable_deadline_is_refused() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(job("first"))
        jobs.worker_queue.queues[0].on_message(finished("first"))
        for number in range(3):
            await jobs.submit(job(f"{number}"))
        with pytest.raises(JobRefused, match=r"about 4\.0 s, and the deadline is in 3\.0 s") as refusal:
            await jobs.submit(job("hopeless", deadline=time.time() + 3))
        assert refusal.value.code == "deadline_unreachable"
        await jobs.submit(job("possible", deadline=time.time() + 4.05))

    play(story)
