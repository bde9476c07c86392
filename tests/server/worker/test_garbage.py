"""A worker that writes garbage is replaced, and its jobs end by name."""

import asyncio
import logging

import pytest
from fakes.garbage import BROKEN, HARMLESS, GarbageSupervisor
from fakes.loop import MANIFEST
from fakes.worker_link import job

from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import JobState
from server.jobs.storage.store import JobStore


async def serve(kind: str) -> tuple[EmbeddedJobs, GarbageSupervisor]:
    """Give a job of two images to workers that write garbage, and wait for its end."""
    jobs = EmbeddedJobs(JobStore(None), MANIFEST)
    device = jobs.worker_queue.add_device("cpu")
    supervisor = device.link = GarbageSupervisor(kind, device)
    await jobs.start()
    await supervisor.start()
    ended, images = await jobs.wait(await jobs.submit(job("a", n=2)))
    assert ended.state is JobState.FAILED and ended.error is not None
    assert (ended.error.code, ended.attempts) == ("worker_lost", 2)
    assert {image.index for image in images} <= {0}
    while not supervisor.is_ready:
        await asyncio.sleep(0.01)
    assert supervisor.starts == 3
    return jobs, supervisor


@pytest.mark.parametrize("kind", BROKEN)
def test_worker_that_writes_garbage_is_replaced_and_its_job_fails_by_name(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        jobs, supervisor = await serve(kind)
        assert b"nan" not in jobs.metrics.text().lower()
        await jobs.stop(grace=0)
        await supervisor.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(story(), 30))
    lines = [record.getMessage() for record in caplog.records if record.name == "server.worker.supervisor"]
    assert len(lines) == 2 and all(line.startswith("the worker is gone: ") for line in lines)
    assert not any(record.exc_info for record in caplog.records), "no traceback"
    assert kind == "half a message" or all("it sent " in line for line in lines)


@pytest.mark.parametrize("kind", HARMLESS)
def test_messages_about_ended_or_unknown_images_change_nothing(kind: str) -> None:
    async def story() -> None:
        jobs, supervisor = await serve(kind)
        assert (b"zimage_images_total 1.0" in jobs.metrics.text()) == ("image" in kind), "an image counts once"
        await jobs.stop(grace=0)
        await supervisor.stop()

    asyncio.run(asyncio.wait_for(story(), 30))
