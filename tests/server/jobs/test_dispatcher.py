"""Jobs between clients and a worker that is nothing but a list of messages."""

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from fakes.jobs import METADATA
from fakes.loop import MANIFEST

from engine.request import ImageFormat, ImageRequest
from engine.stages import StageTimes
from server.jobs.admission import Limits, Refusal
from server.jobs.archive import Archive
from server.jobs.dispatcher import HOPELESS_STARTS, MAX_BEGUN, Dispatcher, JobGone
from server.jobs.job import Job, JobState, StoredImage, new_id
from server.jobs.live_job import Progress
from server.jobs.store import JobStore
from server.worker import messages
from server.worker.messages import Cancel, Generate, ToWorker


class FakeLink:
    def __init__(self) -> None:
        self.is_ready, self.failed_starts, self.last_failure, self.starts = True, 0, None, 1
        self.sent: list[ToWorker] = []
        self.pid = None
        self.is_busy = False

    def send(self, message: ToWorker) -> None:
        self.sent.append(message)

    def expect(self, is_busy: bool) -> None:
        self.is_busy = is_busy

    def generated(self) -> list[str]:
        """Jobs that were sent since the last call."""
        found = [message.key.partition(":")[0] for message in self.sent if isinstance(message, Generate)]
        self.sent.clear()
        return found


def job(name: str, *, key: str | None = None, deadline: float | None = None, n: int = 1) -> Job:
    return Job(
        id=name,
        requests=tuple(ImageRequest("a cat", 64, 64, seed) for seed in range(n)),
        format=ImageFormat(),
        api="test",
        durable=True,
        idempotency_key=key,
        fingerprint="f",
        created=time.time(),
        deadline=deadline,
    )


def finished(name: str, index: int = 0) -> messages.Finished:
    seconds = StageTimes(prompt_encoder=0.1, passes=0.8, vae_decoder=0.1)
    return messages.Finished(f"{name}:{index}", b"image", replace(METADATA, width=64, height=64, seconds=seconds))


Story = Callable[[Dispatcher, FakeLink], Awaitable[None]]


def play(
    story: Story, store: JobStore | None = None, limits: Limits | None = None, archive: Archive | None = None
) -> None:
    async def run() -> None:
        link = FakeLink()
        dispatcher = Dispatcher(store or JobStore(None), MANIFEST, limits, archive)
        dispatcher.link = link
        await dispatcher.start()
        await story(dispatcher, link)
        await dispatcher.stop(grace=1)

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_job_ends_with_its_last_image() -> None:
    async def story(jobs: Dispatcher, link: FakeLink) -> None:
        accepted = await jobs.accept(job("a", n=2))
        assert link.generated() == ["a", "a"] and link.is_busy
        heard = asyncio.create_task(follow(jobs, accepted))
        await asyncio.sleep(0)
        jobs.hear(messages.Started("a:0"))
        jobs.hear(messages.Heartbeat([(1, 0.0)], 0, 0, {"a:0": 4}))
        assert jobs.progress(accepted).done == 4
        for index in (1, 0):
            assert (await jobs.get("a")).state is JobState.RUNNING
            jobs.hear(finished("a", index))
        kinds = [type(event) for event in await heard]
        assert kinds == [Progress, Progress, StoredImage, StoredImage, Job]
        assert not link.is_busy
        assert [image.index for image in (await jobs.end(accepted))[1]] == [0, 1]
        jobs.hear(finished("a", 0))  # late, from nowhere
        assert (await jobs.get("a")).state is JobState.DONE

    play(story)


def test_one_at_a_time_uses_a_store_in_memory() -> None:
    class Watched(JobStore):
        is_pruned = False
        threads: ClassVar[list[threading.Thread]] = []

        def prune(self, older_than: float, max_bytes: int) -> int:
            self.is_pruned = True
            time.sleep(0.3)
            self.is_pruned = False
            return super().prune(older_than, max_bytes)

        def add(self, added: Job) -> Job:
            assert not self.is_pruned
            self.threads.append(threading.current_thread())
            return super().add(added)

    store = Watched(None)

    async def story(jobs: Dispatcher, _: FakeLink) -> None:
        await asyncio.sleep(0.05)
        assert store.is_pruned
        given_up = asyncio.create_task(jobs.accept(job("a")))
        await asyncio.sleep(0.05)
        given_up.cancel()  # which its call does not notice
        await jobs.accept(job("b"))
        await jobs.accept(job("c"))
        main = threading.main_thread()
        assert [thread is main for thread in store.threads] == [False, False, True]

    play(story, store)


async def follow(jobs: Dispatcher, accepted: Job) -> list[object]:
    return [event async for event in jobs.follow(accepted)]


def test_suspects_are_generated_one_at_a_time_and_outlast_a_worker_that_does_not_start() -> None:
    async def story(jobs: Dispatcher, link: FakeLink) -> None:
        for name in "abcd":
            await jobs.accept(job(name))
        assert link.generated() == ["a", "b", "c", "d"]
        for name in "abc":
            jobs.hear(messages.Started(f"{name}:0"))
        link.is_ready = False
        jobs.worker_lost("it died")
        link.failed_starts = 1
        jobs.worker_lost("it did not start")
        assert link.generated() == []
        link.is_ready = True
        jobs.worker_ready()
        assert link.generated() == ["a"]
        jobs.hear(messages.Started("a:0"))
        link.is_ready = False
        jobs.worker_lost("it died again")
        assert (await jobs.get("a")).error.code == "worker_lost"
        link.is_ready = True
        jobs.worker_ready()
        for name in "bc":
            assert link.generated() == [name]
            jobs.hear(messages.Started(f"{name}:0"))
            jobs.hear(finished(name))
        assert link.generated() == ["d"]
        jobs.hear(finished("d"))
        assert [(await jobs.get(name)).state for name in "bcd"] == [JobState.DONE] * 3

    play(story)


def test_when_no_worker_starts_everybody_is_told_and_later_ones_are_served_again() -> None:
    async def story(jobs: Dispatcher, link: FakeLink) -> None:
        await jobs.accept(job("a", key="my key"))
        link.failed_starts = HOPELESS_STARTS
        jobs.worker_lost("no device")
        assert (await jobs.get("a")).error.code == "worker_unavailable"
        with pytest.raises(Refusal) as refusal:
            await jobs.accept(job("b"))
        assert refusal.value.code == "worker_unavailable"
        link.failed_starts = 0
        jobs.worker_ready()
        await jobs.accept(job("c", key="my key"))  # which is not held to a failure that was ours
        assert link.generated()[-1] == "c"

    play(story)


def test_a_job_whose_images_were_all_stored_when_the_server_was_killed_is_done(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    for name in "abc":
        store.add(job(name))
        store.begin(name)
    for _ in range(MAX_BEGUN - 1):  # a job that ends servers
        store.requeue("c")
        store.begin("c")
    store.add_image("a", StoredImage(0, "image/png", b"image", METADATA))

    async def story(jobs: Dispatcher, link: FakeLink) -> None:
        assert (await jobs.get("a")).state is JobState.DONE
        assert (await jobs.get("c")).error.code == "worker_lost"
        assert link.generated() == ["b"]  # alone: it may be what ended that server
        jobs.hear(finished("b"))
        assert not link.is_busy

    play(story, store)


def test_a_full_queue_says_when_to_come_back_and_still_finds_known_keys() -> None:
    async def story(jobs: Dispatcher, link: FakeLink) -> None:
        await jobs.accept(job("first"))
        jobs.hear(finished("first"))  # a second of the engine's time
        for number in range(8):
            await jobs.accept(job(f"{number}", key=f"key {number}"))
        with pytest.raises(Refusal) as refusal:
            await jobs.accept(job("late"))
        assert refusal.value.code == "queue_full"
        assert refusal.value.retry_after == pytest.approx(2.0, rel=0.01)  # a fourth of eight
        assert (await jobs.accept(job("again", key="key 3"))).id == "3"
        jobs.cancel("5")
        assert Cancel("5:0") in link.sent
        await jobs.accept(job("late"))

    play(story, limits=Limits(queue=8))


def test_those_who_come_at_once_do_not_get_past_the_limit_together() -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        asked = (jobs.accept(job(f"{number}")) for number in range(5))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Job, Job, Refusal, Refusal, Refusal]

    play(story, limits=Limits(queue=2))


def test_who_waited_has_the_images_though_they_are_kept_no_longer() -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        accepted = await jobs.accept(job("a"))
        waiting = asyncio.create_task(jobs.end(accepted))
        await asyncio.sleep(0)
        jobs.hear(finished("a"))
        while await jobs.get("a") is not None:
            await asyncio.sleep(0.001)  # until it was pruned
        ended, images = await waiting
        assert ended.state is JobState.DONE and len(images) == 1
        with pytest.raises(JobGone):
            await jobs.end(accepted)
        assert [event async for event in jobs.follow(accepted)] == []

    play(story, limits=Limits(history_bytes=0))


def test_jobs_without_images_are_kept_up_to_the_limit_too() -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        for number in range(40):
            await jobs.accept(job(f"{number}"))
            jobs.cancel(f"{number}")
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert 1 < len(await jobs.history(99, None, None)) < 20

    play(story, limits=Limits(history_bytes=16 << 10))


def test_a_server_that_is_stopped_in_order_costs_a_job_no_attempt(tmp_path: Path) -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        await jobs.accept(job("a"))
        jobs.hear(messages.Started("a:0"))

    path = tmp_path / "jobs.db"
    play(story, JobStore(path))
    with closing(JobStore(path)) as store:
        kept = store.get("a")
        assert kept is not None and (kept.state, kept.attempts) == (JobState.QUEUED, 0)


def test_without_a_worker_those_who_are_connected_are_told() -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        await jobs.accept(replace(job("connected"), durable=False))
        await jobs.accept(job("durable"))
        jobs.give_up("the plans are damaged")
        assert (await jobs.get("connected")).error.code == "worker_unavailable"
        assert (await jobs.get("durable")).state is JobState.QUEUED

    play(story)


def test_deadlines() -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        await jobs.accept(job("first"))
        jobs.hear(finished("first"))
        for number in range(3):
            await jobs.accept(job(f"{number}"))
        with pytest.raises(Refusal, match=r"about 4\.0 s, and the deadline is in 3\.0 s") as refusal:
            await jobs.accept(job("hopeless", deadline=time.time() + 3))
        assert refusal.value.code == "deadline_unreachable"
        await jobs.accept(job("possible", deadline=time.time() + 4.05))
        live = jobs._live["possible"]
        jobs._expire(live)
        assert (await jobs.get("possible")).error.code == "deadline_exceeded"
        assert await jobs.get(new_id()) is None

    play(story)


def test_a_job_whose_client_leaves_while_it_is_written_down_is_generated() -> None:
    async def story(jobs: Dispatcher, link: FakeLink) -> None:
        asking = asyncio.create_task(jobs.accept(job("a")))
        await asyncio.sleep(0)  # it waits for the store
        asking.cancel()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if link.sent:
                break
        assert link.generated() == ["a"]

    play(story)


def test_images_are_archived_and_a_full_disk_costs_nobody_a_job(tmp_path: Path) -> None:
    folder = tmp_path / "archive"

    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        accepted = await jobs.accept(job("job_0123456789abcdef", n=2))
        for index in range(2):
            jobs.hear(finished(accepted.id, index))

    play(story, archive=Archive(folder))
    assert sorted(path.name[26:] for path in folder.iterdir()) == ["abcdef00.png", "abcdef01.png"]
    assert all(re.fullmatch(r"generated_[0-9]{8}_[0-9]{6}_abcdef0[01]\.png", path.name) for path in folder.iterdir())

    async def unlucky(jobs: Dispatcher, _link: FakeLink) -> None:
        accepted = await jobs.accept(job("job_0123456789abcdef"))
        jobs.hear(finished(accepted.id))
        assert (await jobs.get(accepted.id)).state is JobState.DONE

    (tmp_path / "file").write_text("not a folder")
    play(unlucky, archive=Archive(tmp_path / "file"))


def test_position_and_eta_count_those_before() -> None:
    async def story(jobs: Dispatcher, _link: FakeLink) -> None:
        await jobs.accept(job("first"))
        jobs.hear(finished("first"))
        accepted = [await jobs.accept(job(f"{number}", n=2)) for number in range(3)]
        assert [jobs.progress(one).position for one in accepted] == [0, 1, 2]
        assert [jobs.progress(one).eta for one in accepted] == pytest.approx([2.0, 4.0, 6.0])
        jobs.hear(messages.Heartbeat([(1, 0.0)], 0, 0, {"0:0": 4}))
        assert jobs.progress(accepted[2]).eta == pytest.approx(5.6)

    play(story)
