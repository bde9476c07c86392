"""Jobs of a worker that dies or does not start."""

import pytest
from fakes.worker_link import FakeLink, finished, job, play

from server.errors import JobRefused
from server.jobs.devices.device_queue import HOPELESS_STARTS
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import JobState
from server.worker import messages


def test_jobs_of_a_dead_worker_are_replayed_one_at_a_time_even_after_a_failed_start() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        for name in "abcd":
            await jobs.submit(job(name))
        assert link.take_generated() == ["a", "b", "c", "d"]
        for name in "abc":
            jobs.worker_queue.queues[0].on_message(messages.Started(f"{name}:0"))
        link.is_ready = False
        jobs.worker_queue.queues[0].on_worker_lost("it died")
        link.failed_starts = 1
        jobs.worker_queue.queues[0].on_worker_lost("it did not start")
        assert link.take_generated() == []
        link.is_ready = True
        jobs.worker_queue.queues[0].on_worker_ready()
        assert link.take_generated() == ["a"]
        jobs.worker_queue.queues[0].on_message(messages.Started("a:0"))
        link.is_ready = False
        jobs.worker_queue.queues[0].on_worker_lost("it died again")
        assert (await jobs.get("a")).error.code == "worker_lost"
        link.is_ready = True
        jobs.worker_queue.queues[0].on_worker_ready()
        for name in "bc":
            assert link.take_generated() == [name]
            jobs.worker_queue.queues[0].on_message(messages.Started(f"{name}:0"))
            jobs.worker_queue.queues[0].on_message(finished(name))
        assert link.take_generated() == ["d"]
        jobs.worker_queue.queues[0].on_message(finished("d"))
        assert [(await jobs.get(name)).state for name in "bcd"] == [JobState.DONE] * 3

    play(story)


def test_job_cancelled_while_no_worker_is_ready_is_not_kept_for_a_replay() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        for name in "ab":
            await jobs.submit(job(name))
            jobs.worker_queue.queues[0].on_message(messages.Started(f"{name}:0"))
        link.is_ready = False
        jobs.worker_queue.queues[0].on_worker_lost("it died")
        assert await jobs.cancel("b")
        assert [live.job.id for live in jobs.worker_queue._replays.suspects] == ["a"]

    play(story)


def test_jobs_fail_while_no_worker_starts_and_are_accepted_once_one_does() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        await jobs.submit(job("a", key="my key"))
        link.failed_starts = HOPELESS_STARTS
        jobs.worker_queue.queues[0].on_worker_lost("no device")
        assert (await jobs.get("a")).error.code == "worker_unavailable"
        with pytest.raises(JobRefused) as refusal:
            await jobs.submit(job("b"))
        assert refusal.value.code == "worker_unavailable"
        link.failed_starts = 0
        jobs.worker_queue.queues[0].on_worker_ready()
        await jobs.submit(job("c", key="my key"))  # its earlier failure was the server's
        assert link.take_generated()[-1] == "c"

    play(story)


def test_job_that_could_not_be_sent_for_lack_of_memory_is_sent_later() -> None:
    class ShortLink(FakeLink):
        is_short = True

        def send(self, message: messages.ToWorker) -> None:
            if self.is_short:
                raise MemoryError
            super().send(message)

    async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
        jobs.worker_queue.queues[0].link = short = ShortLink()
        with pytest.raises(MemoryError):
            await jobs.submit(job("a"))
        short.is_short = False
        await jobs.submit(job("b"))
        assert short.take_generated() == ["a", "b"]

    play(story)


def test_job_that_ends_workers_before_they_begin_it_fails_and_the_others_are_generated() -> None:
    """Reading its message ends the worker, for example."""

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        for name in "abc":
            await jobs.submit(job(name))
        assert link.take_generated() == ["a", "b", "c"]
        for expected in ("a", "a"):  # alone, until its attempts are used up
            jobs.worker_queue.queues[0].on_worker_lost("it died")
            jobs.worker_queue.queues[0].on_worker_ready()
            assert link.take_generated() == [expected]
        jobs.worker_queue.queues[0].on_worker_lost("it died")
        assert (await jobs.get("a")).error.code == "worker_lost"
        assert [(await jobs.get(name)).attempts for name in "abc"] == [2, 0, 0]
        jobs.worker_queue.queues[0].on_worker_ready()
        for name in "bc":
            jobs.worker_queue.queues[0].on_message(finished(name))
        assert [(await jobs.get(name)).state for name in "bc"] == [JobState.DONE] * 2

    play(story)


def test_batch_job_uses_the_share_of_all_batch_jobs_at_eight_times_its_cost() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        await jobs.submit(job("later", client="one", priority="batch"))
        await jobs.submit(job("now", client="one"))
        assert [(message.client, message.cost_factor) for message in link.sent] == [("batch", 8.0), ("one", 1.0)]  # type: ignore[union-attr]

    play(story)
