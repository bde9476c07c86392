"""Jobs that begin with an image: on their way to the worker, after its death, after a restart, and when many."""

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.jobs import init_image
from fakes.worker_link import FakeLink, finished, job, play

from server.errors import QueueFull
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import Job, JobState
from server.jobs.storage.store import JobStore
from server.worker import messages
from server.worker.messages import Generate
from server.worker.packed_image import PackedImage, pack, unpack

IMAGE = init_image()
PACKED = pack(IMAGE)


def edit_job(name: str, deadline: float | None = None, client: str = "") -> Job:
    made = job(name, deadline=deadline, client=client)
    return replace(made, request=made.request.starting_from(IMAGE))


async def sent(link: FakeLink, count: int = 1) -> dict[str, bytes | None]:
    """Wait for jobs and return the packed image of each."""
    async with asyncio.timeout(5):
        while len(found := [each for each in link.sent if isinstance(each, Generate)]) < count:
            await asyncio.sleep(0.01)
    return {each.job: each.init_image for each in found}


def test_job_goes_to_the_worker_with_its_image_and_leaves_the_server_s_memory() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        await jobs.submit(edit_job("a"), init_image=PACKED)
        await jobs.submit(job("b"))
        assert await sent(link, 2) == {"a": PACKED.data, "b": None}
        assert jobs._tracker.get("a").init_image is None
        jobs.worker_queue.queues[0].on_message(finished("a"))
        assert (await jobs.get("a")).state is JobState.DONE

    play(story)


def test_replay_after_the_worker_s_death_has_the_image_again() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        await jobs.submit(edit_job("a"), init_image=PACKED)
        jobs.worker_queue.queues[0].on_message(messages.Started("a:0"))
        link.sent.clear()
        jobs.worker_queue.queues[0].on_worker_lost("it was killed")
        jobs.worker_queue.queues[0].on_worker_ready()
        assert await sent(link) == {"a": PACKED.data}

    play(story)


def test_job_of_a_killed_server_is_replayed_with_its_image(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path / "jobs.db")) as store:
        store.add(edit_job("a"), PACKED)
        store.start("a")
        store.add(edit_job("b"), PACKED)

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        assert await sent(link) == {"a": PACKED.data}  # alone, since it may have killed that server
        jobs.worker_queue.queues[0].on_message(finished("a"))
        assert unpack((await sent(link, 2))["b"]) == IMAGE

    play(story, JobStore(tmp_path / "jobs.db"))


@pytest.mark.parametrize("damage", ["DELETE FROM init_images", "UPDATE init_images SET data = 'text'"])
def test_job_whose_image_is_damaged_fails_by_name_and_the_others_are_sent(tmp_path: Path, damage: str) -> None:
    with closing(JobStore(tmp_path / "jobs.db")) as store:
        store.add(edit_job("a"), PACKED)
        store.add(job("b"))
        store.database.connection.execute(damage)

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        assert await sent(link) == {"b": None}
        live = jobs._tracker.get("a")
        if live is not None:
            await live.ended.wait()
        failed = await jobs.get("a")
        assert (failed.state, failed.error.code) == (JobState.FAILED, "job_damaged")

    play(story, JobStore(tmp_path / "jobs.db"))


def test_job_cancelled_while_its_image_is_read_is_not_sent() -> None:
    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        link.is_ready = False
        await jobs.submit(edit_job("a"), init_image=PACKED)
        jobs._tracker.get("a").init_image = None
        link.is_ready = True
        jobs.worker_queue.send_pending()
        assert await jobs.cancel("a")
        await asyncio.sleep(0.05)
        assert not link.sent and not jobs.worker_queue._init_images._loading

    play(story)


def test_image_that_the_store_cannot_read_now_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.errors import StoreUnavailable
    from server.jobs.devices import init_image_loader

    monkeypatch.setattr(init_image_loader, "LOAD_AGAIN", 0.01)
    attempts = []

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        read = jobs._store.init_images.get

        def refused(id: str) -> PackedImage | None:
            attempts.append(id)
            if len(attempts) < 3:
                raise StoreUnavailable("the disk sleeps")
            return read(id)

        link.is_ready = False
        await jobs.submit(edit_job("a"), init_image=PACKED)
        jobs._tracker.get("a").init_image = None
        jobs._store.init_images.get = refused
        link.is_ready = True
        jobs.worker_queue.send_pending()
        jobs.worker_queue.send_pending()
        assert await sent(link) == {"a": PACKED.data}

    play(story)
    assert len(attempts) == 3


def test_images_of_unfinished_jobs_are_bounded_and_one_client_leaves_room() -> None:
    large = PackedImage(PACKED.data, 100)

    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        for name in "abc":
            await jobs.submit(edit_job(name, client="first"), init_image=large)
        with pytest.raises(QueueFull, match="The images that unfinished jobs begin with") as refusal:
            await jobs.submit(edit_job("d", client="first"), init_image=large)
        assert refusal.value.retry_after >= 0
        await jobs.submit(job("e", client="first"))  # without an image
        await jobs.submit(edit_job("f", client="second"), init_image=PackedImage(PACKED.data, 70))
        with pytest.raises(QueueFull):
            await jobs.submit(edit_job("g", client="second"), init_image=large)
        assert await jobs.cancel("a")
        await jobs.submit(edit_job("h", client="second"), init_image=PackedImage(PACKED.data, 30))

    play(story, limits=Limits(init_image_bytes=400))


def test_images_that_are_being_stored_count_too() -> None:
    large = PackedImage(PACKED.data, 100)

    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        wanted = (jobs.submit(edit_job(f"{n}", client=f"{n}"), init_image=large) for n in range(20))
        outcomes = await asyncio.gather(*wanted, return_exceptions=True)
        assert sum(isinstance(outcome, Job) for outcome in outcomes) == 3
        assert jobs._admitting_bytes == 0

    play(story, limits=Limits(init_image_bytes=400))


def test_images_of_an_earlier_server_s_jobs_count_too(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path / "jobs.db")) as store:
        store.add(edit_job("a"), PackedImage(PACKED.data, 300))

    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        with pytest.raises(QueueFull, match="The images that unfinished jobs begin with"):
            await jobs.submit(edit_job("b", client="other"), init_image=PackedImage(PACKED.data, 200))

    play(story, JobStore(tmp_path / "jobs.db"), limits=Limits(init_image_bytes=400))
