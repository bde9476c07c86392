"""Submission, queries and events of jobs, with a fake worker."""

import asyncio
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from fakes.worker_link import FakeLink, finished, follow, job, play

from server.errors import JobNotFound, TooManyFollowers
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.follower import JobPreview, Progress
from server.jobs.job import Job, JobState, StoredImage, new_id
from server.jobs.job_events import MAX_FOLLOWERS
from server.jobs.storage.history import HistoryPage
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.retention import Retention
from server.jobs.storage.store import JobStore
from server.worker import messages
from server.worker.packed_image import PackedImage


def test_job_ends_with_its_last_image() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        accepted = await jobs.submit(job("a", n=2))
        assert link.take_generated() == ["a", "a"]
        events = asyncio.create_task(follow(jobs, accepted))
        await asyncio.sleep(0)  # the first progress is read; the next ones come at once
        jobs.worker_queue.queues[0].on_message(messages.Started("a:0"))
        jobs.worker_queue.queues[0].on_message(messages.Heartbeat([(1, 0.0)], 0, 0, {"a:0": 4}))
        assert (await jobs.progress(accepted)).done == 4
        for index in (1, 0):
            assert (await jobs.get("a")).state is JobState.RUNNING
            jobs.worker_queue.queues[0].on_message(finished("a", index))
        kinds = [type(event) for event in await events]
        assert kinds == [Progress, StoredImage, StoredImage, Job]
        assert [image.index for image in (await jobs.wait(accepted))[1]] == [0, 1]
        jobs.worker_queue.queues[0].on_message(finished("a", 0))  # too late
        assert (await jobs.get("a")).state is JobState.DONE
        assert await jobs.get(new_id()) is None

    play(story)


def test_calls_to_a_store_in_memory_do_not_overlap() -> None:
    class Watched(JobStore):
        is_pruned = False
        threads: ClassVar[list[threading.Thread]] = []

        def prune(self, retention: Retention) -> int:
            self.is_pruned = True
            time.sleep(0.3)
            self.is_pruned = False
            return super().prune(retention)

        def add(self, added: Job, init_image: PackedImage | None = None) -> Job:
            assert not self.is_pruned
            self.threads.append(threading.current_thread())
            return super().add(added, init_image)

    store = Watched(None)

    async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
        await asyncio.sleep(0.05)
        assert store.is_pruned
        given_up = asyncio.create_task(jobs.submit(job("a")))
        await asyncio.sleep(0.05)
        given_up.cancel()  # the call goes on
        await jobs.submit(job("b"))
        await jobs.submit(job("c"))
        main = threading.main_thread()
        assert [thread is main for thread in store.threads] == [False, False, True]

    play(story, store)


def test_waiting_client_gets_images_that_are_pruned_at_once() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        accepted = await jobs.submit(job("a"))
        waiting = asyncio.create_task(jobs.wait(accepted))
        await asyncio.sleep(0)
        jobs.worker_queue.queues[0].on_message(finished("a"))
        while await jobs.get("a") is not None:
            await asyncio.sleep(0.001)  # until it was pruned
        ended, images = await waiting
        assert ended.state is JobState.DONE and len(images) == 1
        with pytest.raises(JobNotFound):
            await jobs.wait(accepted)
        assert [event async for event in jobs.follow(accepted)] == []

    play(story, limits=Limits(history=Retention(max_bytes=0)))


def test_jobs_without_images_count_against_the_history_limit() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        for number in range(40):
            await jobs.submit(job(f"{number}"))
            await jobs.cancel(f"{number}")
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert 1 < len((await jobs.history(99, None, None)).jobs) < 20

    play(story, limits=Limits(history=Retention(max_bytes=16 << 10)))


def test_history_has_the_end_of_a_job_that_ended_while_the_page_was_read() -> None:
    class EndsWhileRead(JobStore):
        def history(self, limit: int, before: int | None = None, owner: str | None = None) -> HistoryPage:
            page = super().history(limit, before, owner)
            self.cancel("a")
            return page

    store = EndsWhileRead(None)

    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        store.add(job("a"))  # in the store only, as a job that has just left the memory
        [found] = (await jobs.history(9, None, None)).jobs
        assert found.state is JobState.CANCELLED

    play(story, store)


def test_without_a_worker_connected_jobs_fail_and_durable_ones_stay() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(replace(job("connected"), durable=False))
        await jobs.submit(job("durable"))
        jobs.fail_connected("the plans are damaged")
        assert (await jobs.get("connected")).error.code == "worker_unavailable"
        assert (await jobs.get("durable")).state is JobState.QUEUED

    play(story)


@pytest.mark.parametrize(
    ("database", "lost"), [(None, ["1 unfinished jobs are lost, since there is no --database"]), ("a", [])]
)
def test_jobs_lost_without_a_database_are_logged_at_the_end(
    database: str | None, lost: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(job("durable"))

    play(story, JobStore(tmp_path / database if database else None))
    assert [record.message for record in caplog.records if "lost" in record.message] == lost


def test_job_is_generated_though_its_client_disconnects_during_submission() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        asking = asyncio.create_task(jobs.submit(job("a")))
        await asyncio.sleep(0)  # it awaits the store
        asking.cancel()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if link.sent:
                break
        assert link.take_generated() == ["a"]

    play(story)


def test_images_are_archived_and_an_unusable_archive_fails_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "archive"

    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        accepted = await jobs.submit(job("job_0123456789abcdef", n=2))
        for index in range(2):
            jobs.worker_queue.queues[0].on_message(finished(accepted.id, index))

    play(story, archive=Archive(folder))
    assert sorted(path.name[26:] for path in folder.iterdir()) == ["abcdef00.png", "abcdef01.png"]
    assert all(re.fullmatch(r"generated_[0-9]{8}_[0-9]{6}_abcdef0[01]\.png", path.name) for path in folder.iterdir())

    async def unusable(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        accepted = await jobs.submit(job("job_0123456789abcdef"))
        jobs.worker_queue.queues[0].on_message(finished(accepted.id))
        assert (await jobs.get(accepted.id)).state is JobState.DONE

    (tmp_path / "file").write_text("not a folder")
    play(unusable, archive=Archive(tmp_path / "file"))


def test_previews_reach_followers_until_the_image_is_finished() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        accepted = await jobs.submit(job("a", n=2))
        events = asyncio.create_task(follow(jobs, accepted))
        await asyncio.sleep(0)
        for message in (
            messages.PreviewReady("a:0", 4, b"preview"),
            finished("a", 0),
            messages.PreviewReady("a:0", 6, b"late"),
            finished("a", 1),
        ):
            jobs.worker_queue.queues[0].on_message(message)
        assert [event for event in await events if isinstance(event, JobPreview)] == [JobPreview(0, 4, b"preview")]

    play(story)


def test_position_and_eta_count_earlier_jobs() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(job("first"))
        jobs.worker_queue.queues[0].on_message(finished("first"))
        accepted = [await jobs.submit(job(f"{number}", n=2)) for number in range(3)]
        assert [(await jobs.progress(one)).position for one in accepted] == [0, 1, 2]
        assert [(await jobs.progress(one)).eta for one in accepted] == pytest.approx([2.0, 4.0, 6.0])
        jobs.worker_queue.queues[0].on_message(messages.Heartbeat([(1, 0.0)], 0, 0, {"0:0": 4}))
        assert (await jobs.progress(accepted[2])).eta == pytest.approx(5.6)

    play(story)


def test_no_time_of_a_job_is_before_its_acceptance_after_the_clock_was_set_back() -> None:
    accepted = time.time() + 500

    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        for name in "ab":
            await jobs.submit(replace(job(name), created=accepted))
        jobs.worker_queue.queues[0].on_message(messages.Started("a:0"))
        await jobs.cancel("b")
        await jobs.cancel("a")
        ended = [await jobs.get(name) for name in "ab"]
        assert [(found.started, found.finished) for found in ended] == [(accepted, accepted), (None, accepted)]

    play(story)


def test_followers_of_one_task_are_limited() -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        for name in ("a", "b"):
            accepted = await jobs.submit(job(name))
            following = [jobs.follow(accepted) for _ in range(MAX_FOLLOWERS)]
            for events in following:
                await anext(events)
            with pytest.raises(TooManyFollowers):
                jobs.follow(accepted)
            await following[0].aclose()
            at_once = [jobs.follow(accepted) for _ in range(3)]
            assert len([1 for events in at_once if await anext(events, None)]) == 1

    play(story)
