"""Heartbeats of a host: when they are sent, and that none follows when it has left."""

import asyncio
import threading
from collections.abc import Mapping
from contextlib import closing

import pytest
from fakes.hosts import device, worker
from fakes.waiting import wait_until

from server.fleet.host import heartbeats
from server.fleet.host.heartbeats import Heartbeats
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.fleet.worker_info import HeartbeatAnswer, WorkerInfo

TIMEOUT = 20.0  # seconds


class FakeJobs:
    """No jobs, and one device."""

    steps: Mapping[str, int] = {}
    is_ready = False

    def info(self) -> WorkerInfo:
        return worker(devices=(device(is_ready=self.is_ready),))

    def give_back_if_lost(self) -> None:
        pass


class SlowStore:
    """A store that answers a heartbeat when a test lets it."""

    def __init__(self) -> None:
        self.asked, self.may_answer, self.answered = threading.Event(), threading.Event(), 0

    def register(self, _: WorkerInfo) -> None:
        pass

    def heartbeat(self, _: WorkerInfo, __: Mapping[str, int]) -> HeartbeatAnswer:
        self.asked.set()
        assert self.may_answer.wait(TIMEOUT)
        self.answered += 1
        return HeartbeatAnswer([], is_draining=False)


@pytest.fixture(autouse=True)
def _seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_SECONDS", 600.0)


def test_device_that_becomes_ready_or_is_lost_is_told_at_once(postgres_url: str) -> None:
    jobs = FakeJobs()

    async def run(store: FleetStore) -> None:
        sent = Heartbeats(store, jobs, lambda: None)
        await sent.start()
        for is_ready in (True, False, True):
            jobs.is_ready = is_ready
            await asyncio.to_thread(wait_until, lambda: store.workers()[0].devices[0].is_ready is jobs.is_ready)
        await sent.close()

    with closing(FleetStore(postgres_url)) as store:
        asyncio.run(run(store))


def test_close_waits_for_the_heartbeat_that_is_on_its_way() -> None:
    store = SlowStore()

    async def run() -> None:
        sent = Heartbeats(store, FakeJobs(), lambda: None)
        await sent.start()
        assert await asyncio.to_thread(store.asked.wait, TIMEOUT)
        closing = asyncio.create_task(sent.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        store.may_answer.set()
        await closing
        assert store.answered == 1

    asyncio.run(run())
