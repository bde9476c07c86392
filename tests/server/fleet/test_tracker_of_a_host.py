"""A job tracker over the store of a host: it counts what it has ended itself."""

import asyncio
from contextlib import closing

import pytest
from fakes.jobs import host, image, job
from fakes.loop import MANIFEST

from engine.size import Size
from server.jobs.job import JobState
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.storage.async_store import AsyncStore
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.retention import Retention
from server.jobs.tracker import JobTracker


@pytest.mark.parametrize("is_cancelled_elsewhere", [False, True])
def test_end_is_counted_only_by_the_process_whose_write_ended_the_job(
    postgres_url: str, is_cancelled_elsewhere: bool
) -> None:
    metrics = Metrics()

    async def run(fleet: FleetStore, id: str) -> None:
        store = AsyncStore(fleet.held_by("host"), Retention())
        store.start()
        tracker = JobTracker(store, MANIFEST, metrics)
        live = LiveJob(job(id=id))
        tracker.add(live)
        if is_cancelled_elsewhere:
            assert fleet.cancel(id)
        tracker.add_image(live, image())
        assert live.job.state is JobState.DONE
        await store.flush()
        await asyncio.sleep(0)  # the callbacks of the last write
        store.close()

    with closing(FleetStore(postgres_url)) as fleet:
        fleet.register(host("host"))
        id = fleet.add(job(model="nano")).id
        assert [claimed.job.id for claimed in fleet.claim(host("host"), (), 1, lambda _: Size(64, 64))] == [id]
        asyncio.run(run(fleet, id))
    counted = 'zimage_jobs_ended_total{api="images",code="",state="done"} 1.0' in metrics.text().decode()
    assert counted is not is_cancelled_elsewhere
