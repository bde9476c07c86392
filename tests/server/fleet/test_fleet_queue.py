"""Places, times and deadlines as a replica estimates them from the database and the hosts' measured times."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from fakes.hosts import device, worker
from fakes.jobs import image
from fakes.loop import MANIFEST
from fakes.worker_link import job

from server.errors import StoreUnavailable
from server.fleet.fleet_view import FleetView
from server.fleet.replica import fleet_queue
from server.fleet.replica.fleet_queue import FleetQueue
from server.jobs.job import Job
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import SizeAverage, WorkerInfo
from server.jobs.storage.retention import Retention

MODEL = MANIFEST.model.name
ONE_SECOND = SizeAverage(width=64, height=64, per_pass=0.125, fixed=0.0)  # for an image of 8 passes
HOSTS = tuple(
    replace(worker(id, devices=(device(),)), model=MODEL, plan_id=MANIFEST.plan_id, averages=(ONE_SECOND,))
    for id in ("a", "b")
)

Story = Callable[[FleetQueue, FleetStore], Awaitable[None]]


def play(
    url: str, story: Story, hosts: tuple[WorkerInfo, ...] = HOSTS[:1], store: type[FleetStore] = FleetStore
) -> None:
    async def run() -> None:
        opened = store(url)
        calls = AsyncStore(opened, Retention(), None, 4)
        try:
            await story(FleetQueue(calls, opened, MANIFEST, lambda: FleetView(hosts)), opened)
        finally:
            calls.close()
            await calls.wait_closed()

    asyncio.run(run())


def test_places_and_ends_follow_from_the_hosts_times(postgres_url: str) -> None:
    async def story(queue: FleetQueue, store: FleetStore) -> None:
        for number in range(3):
            store.add(job(f"{number}", n=2))
        await queue.refresh()
        assert [queue.place(f"{number}")[0] for number in range(3)] == [0, 1, 2]
        assert [queue.place(f"{number}")[1] for number in range(3)] == pytest.approx([2.0, 4.0, 6.0])
        assert queue.place("unknown") == (0, 0.0)

    play(postgres_url, story)


def test_more_devices_end_the_queue_sooner_and_what_is_done_does_not_count(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 0.0)

    async def story(queue: FleetQueue, store: FleetStore) -> None:
        store.add(job("a", n=4))
        store.register(HOSTS[0])
        (claimed,) = store.claim(HOSTS[0], [], 4, lambda each: each.request.size(MANIFEST))
        await queue.refresh()
        assert queue.place("a")[1] == pytest.approx(2.0)  # four images on two devices
        held = store.held_by(HOSTS[0].id)
        assert held.start("a") and held.add_image("a", image(0)) and held.add_image("a", image(1))
        store.heartbeat(HOSTS[0], {claimed.job.id: 2 * 8 + 4})
        await queue.refresh()
        assert queue.order.seconds == pytest.approx(0.75)  # one and a half images

    play(postgres_url, story, HOSTS)


def test_jobs_of_other_models_are_not_in_the_way(postgres_url: str) -> None:
    async def story(queue: FleetQueue, store: FleetStore) -> None:
        store.add(replace(job("other"), model="another model"))
        store.add(replace(job("mine"), model=MODEL))
        await queue.refresh()
        assert [live.job.id for live in queue.order] == ["mine"]

    play(postgres_url, story)


class CountedStore(FleetStore):
    reads = 0

    def unfinished(self) -> list[Job]:
        self.reads += 1
        return super().unfinished()


def test_queue_is_read_once_in_its_time_whatever_is_asked_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 3600.0)

    async def story(queue: FleetQueue, store: FleetStore) -> None:
        assert isinstance(store, CountedStore)
        store.add(job("a"))
        await asyncio.gather(*(queue.refresh() for _ in range(100)))
        newer, other = store.add(job("b")), store.add(replace(job("c"), model="another model"))
        for asked in (newer, other, newer, other):
            await queue.refresh()
            queue.add(asked)
        assert store.reads == 1
        assert queue.place("b") == (1, pytest.approx(2.0))
        assert queue.place("c") == (0, 0.0)

    play(postgres_url, story, store=CountedStore)


def test_queue_is_read_no_more_often_while_the_database_is_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 3600.0)

    class Away(CountedStore):
        def unfinished(self) -> list[Job]:
            self.reads += 1
            raise StoreUnavailable("the job store is away")

    async def story(queue: FleetQueue, store: FleetStore) -> None:
        for _ in range(9):
            await queue.refresh()
        assert isinstance(store, Away) and store.reads == 1

    play(postgres_url, story, store=Away)


def test_job_that_has_left_the_queue_does_not_come_back(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a client asks for it with the row of a moment ago."""
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 3600.0)

    async def story(queue: FleetQueue, store: FleetStore) -> None:
        ended, last, cancelled = (store.add(job(id)) for id in ("a", "b", "c"))
        store.cancel(ended.id)
        await queue.refresh()
        queue.remove(cancelled.id)
        for each in (ended, cancelled):
            queue.add(each)
        assert [live.job.id for live in queue.order] == [last.id]

    play(postgres_url, story)


def test_last_estimates_stay_while_the_database_is_away(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_queue, "MAX_AGE", 0.0)

    async def story(queue: FleetQueue, store: FleetStore) -> None:
        store.add(job("a"))
        await queue.refresh()

        def unavailable() -> list[Job]:
            raise StoreUnavailable("the job store is away")

        monkeypatch.setattr(store, "unfinished", unavailable)
        await queue.refresh()
        assert queue.place("a")[1] == pytest.approx(1.0)

    play(postgres_url, story)
