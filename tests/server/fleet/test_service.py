"""Jobs of a replica without a broker: the database alone tells what becomes of them. A host claims from the store."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from fakes.fleet import replica
from fakes.hosts import device, worker
from fakes.jobs import image
from fakes.loop import MANIFEST
from fakes.worker_link import job

from server.errors import DeadlineUnreachable, JobNotFound, QueueFull, StoreUnavailable
from server.fleet.fleet_options import FleetOptions
from server.fleet.messaging.events import JobEnded
from server.fleet.replica import fleet_queue, replica_store, service, watch
from server.fleet.replica.service import FleetJobs
from server.fleet.replica.watch import Watch
from server.jobs.admission.admission import Limits
from server.jobs.admission.rate import Rate
from server.jobs.follower import Progress
from server.jobs.job import Job, JobState, StoredImage
from server.jobs.storage.fleet.client_hash import client_hash
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import SizeAverage

NO_BROKER = "redis://127.0.0.1:1/0"  # nobody listens there
HOST = replace(
    worker("host", devices=(device(),)),
    model=MANIFEST.model.name,
    plan_id=MANIFEST.plan_id,
    averages=(SizeAverage(width=64, height=64, per_pass=0.125, fixed=0.0),),  # a second for an image
)


@pytest.fixture(autouse=True)
def _short_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the broker at the end."""
    monkeypatch.setattr(service, "SHUTDOWN_SECONDS", 0.2)


class Host:
    """Generates images by hand."""

    def __init__(self, store: FleetStore) -> None:
        self.store, self.held = store, store.held_by(HOST.id)
        store.register(HOST)

    def claim(self) -> Job:
        (claimed,) = self.store.claim(HOST, [], 1, lambda each: each.request.size(MANIFEST))
        assert self.held.start(claimed.job.id)
        return claimed.job


Story = Callable[[FleetJobs, Host], Awaitable[None]]


def play(url: str, story: Story, limits: Limits | None = None) -> None:
    async def run() -> None:
        host = Host(FleetStore(url))
        jobs = replica(FleetOptions(NO_BROKER, url, "test"), MANIFEST, limits)
        await jobs.start()
        try:
            await story(jobs, host)
        finally:
            await jobs.stop(grace=0)
            host.store.close()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_waiting_client_is_answered_though_no_event_comes(postgres_url: str) -> None:
    async def story(jobs: FleetJobs, host: Host) -> None:
        accepted = await jobs.submit(job("a"))
        waiting = asyncio.create_task(jobs.wait(accepted))
        assert host.claim().id == "a"
        host.held.add_image("a", image())
        host.held.finish("a")
        ended, images = await waiting
        assert ended.state is JobState.DONE and [each.data for each in images] == [b"data"]
        assert not await jobs.cancel("a")

    play(postgres_url, story)


def test_follower_gets_each_image_once_and_the_end_last(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)

    async def story(jobs: FleetJobs, host: Host) -> None:
        accepted = await jobs.submit(job("a", n=3))
        host.claim()
        host.held.add_image("a", image(1))
        events: list[object] = []

        async def follow(received: tuple[int, ...]) -> list[object]:
            return [event async for event in jobs.follow(accepted, received)]

        async def collect() -> None:
            async for event in jobs.follow(accepted):
                events.append(event)

        following, other = asyncio.create_task(collect()), asyncio.create_task(follow((1, 2)))
        while not any(isinstance(event, StoredImage) for event in events):
            await asyncio.sleep(0.01)
        host.held.add_image("a", image(0))
        host.held.add_image("a", image(2))
        host.held.finish("a")
        await following
        assert [event.index for event in events if isinstance(event, StoredImage)] == [1, 0, 2]
        assert isinstance(events[0], Progress) and isinstance(events[-1], Job)
        assert [event.index for event in await other if isinstance(event, StoredImage)] == [0]
        assert [event.index for event in await follow((0,)) if isinstance(event, StoredImage)] == [1, 2]  # it has ended

    play(postgres_url, story)


def test_deleted_job_ends_the_wait_and_the_stream(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)

    async def story(jobs: FleetJobs, host: Host) -> None:
        accepted = await jobs.submit(job("a"))
        waiting = asyncio.create_task(jobs.wait(accepted))
        following = asyncio.create_task(anext(aiter_of_ends(jobs, accepted), None))
        await asyncio.sleep(0.1)
        host.store.database.execute("DELETE FROM jobs")
        with pytest.raises(JobNotFound):
            await waiting
        assert await following is None

    async def aiter_of_ends(jobs: FleetJobs, accepted: Job):  # type: ignore[no-untyped-def]
        async for event in jobs.follow(accepted):
            if isinstance(event, Job):
                yield event

    play(postgres_url, story)


def test_cancel_survives_its_caller_and_a_database_that_is_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_store, "RETRY_SECONDS", 0.05)

    async def story(jobs: FleetJobs, host: Host) -> None:
        for name in ("a", "b"):
            await jobs.submit(job(name))
        caller = asyncio.create_task(jobs.cancel("a"))
        await asyncio.sleep(0)
        caller.cancel()
        real, failures = jobs._store.cancel, iter(range(3))

        def away(id: str) -> bool:
            if next(failures, None) is None:
                return real(id)
            raise StoreUnavailable("the job store is away")

        monkeypatch.setattr(jobs._store, "cancel", away)
        with pytest.raises(StoreUnavailable):
            await jobs.cancel("b")
        for name in ("a", "b"):
            while (found := host.store.get(name)) is None or found.state is not JobState.CANCELLED:
                await asyncio.sleep(0.02)
        while b'state="cancelled"} 2.0' not in jobs.metrics.text():
            await asyncio.sleep(0.02)

    play(postgres_url, story)


def test_answer_waits_for_a_database_that_comes_back(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_store, "RETRY_SECONDS", 0.05)

    async def story(jobs: FleetJobs, host: Host) -> None:
        accepted = await jobs.submit(job("a"))
        host.claim()
        host.held.add_image("a", image())
        real, failures = jobs._store.images, iter(range(3))

        def away(id: str) -> list[StoredImage]:
            if next(failures, None) is None:
                return real(id)
            raise StoreUnavailable("the job store is away")

        monkeypatch.setattr(jobs._store, "images", away)
        host.held.finish("a")
        ended, images = await jobs.wait(accepted)
        assert ended.state is JobState.DONE and len(images) == 1

    play(postgres_url, story)


def test_submission_whose_commit_may_be_lost_makes_one_job(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(jobs: FleetJobs, host: Host) -> None:
        real, calls = jobs._store.add, []

        def add(*args: object) -> Job:
            calls.append(added := real(*args))  # type: ignore[arg-type]
            if len(calls) == 1:
                raise StoreUnavailable("the connection was lost")
            return added

        monkeypatch.setattr(jobs._store, "add", add)
        assert (await jobs.submit(job("a"))).id == "a"
        assert len(calls) == 2 and [each.id for each in host.store.unfinished()] == ["a"]

    play(postgres_url, story)


def test_refusals_name_a_time_from_the_hosts_measurements(postgres_url: str) -> None:
    async def story(jobs: FleetJobs, _: Host) -> None:
        for number in range(8):
            await jobs.submit(job(f"{number}", client=f"{number}"))
        with pytest.raises(QueueFull, match="The queue is full") as refusal:
            await jobs.submit(job("more", client="more"))
        assert refusal.value.retry_after == pytest.approx(2.0)  # a fourth of eight seconds
        late = job("late", client="more")
        with pytest.raises(DeadlineUnreachable) as too_late:
            await jobs.submit(replace(late, deadline=late.created + 0.5))
        assert too_late.value.retry_after > 0

    play(postgres_url, story, Limits(queue=8))


def test_progress_tells_steps_place_and_time(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 0.0)

    async def story(jobs: FleetJobs, host: Host) -> None:
        first, second = [await jobs.submit(job(name)) for name in ("a", "b")]
        assert (await jobs.progress(second)).position == 1
        assert (await jobs.progress(second)).eta == pytest.approx(2.0)
        host.claim()
        host.store.heartbeat(HOST, {"a": 4})
        running = await jobs.get("a")
        assert running is not None
        progress = await jobs.progress(running)
        assert (progress.state, progress.done, progress.steps) == (JobState.RUNNING, 4, 8)
        assert progress.eta == pytest.approx(0.5)
        await jobs.cancel(first.id)
        ended = await jobs.get(first.id)
        assert ended is not None and (await jobs.progress(ended)).steps == 0

    play(postgres_url, story)


def test_watch_forgets_jobs_that_nobody_watches(postgres_url: str) -> None:
    async def story(jobs: FleetJobs, _: Host) -> None:
        accepted = await jobs.submit(job("a"))
        waiting = asyncio.create_task(jobs.wait(accepted))
        await asyncio.sleep(0.05)
        found: Watch = jobs._watch
        assert found._jobs.keys() == {"a"}
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not found._jobs

    play(postgres_url, story)


def test_database_has_no_address_of_a_client(postgres_url: str) -> None:
    address = "192.0.2.7"

    async def story(jobs: FleetJobs, host: Host) -> None:
        accepted = await jobs.submit(job("a", client=address))
        await jobs.hit(address, Rate(9, 60))
        host.claim()
        assert [found.id for found in await jobs.unfinished(address, accepted.api)] == ["a"]
        assert await jobs.unfinished("192.0.2.8", accepted.api) == []
        for table in ("jobs", "rates", "shares"):
            (row,) = host.store.database.rows(f"SELECT * FROM {table}")
            assert row["client"] == client_hash(address) and address not in str(row)

    play(postgres_url, story)


def test_job_that_has_ended_leaves_the_queue_at_once(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 3600.0)

    async def story(jobs: FleetJobs, host: Host) -> None:
        first, _, last = [await jobs.submit(job(name)) for name in ("a", "b", "c")]
        assert (await jobs.progress(last)).position == 2
        host.claim()
        host.held.add_image("a", image())
        host.held.finish("a")
        await jobs.wait(first)
        assert (await jobs.progress(last)).position == 1
        jobs._watch.on_event(JobEnded("b"))  # which nobody here watches
        assert (await jobs.progress(last)).position == 0

    play(postgres_url, story)
