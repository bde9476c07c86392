"""Archiving in a thread, when the disk hangs or much is new, and the answers that wait for it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from fakes.archive import names
from fakes.jobs import image, job
from fakes.worker_link import FakeLink, finished, play
from fakes.worker_link import job as new_job

from server.jobs import live_job
from server.jobs.embedded import EmbeddedJobs
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.images.archive_writer import MAX_QUEUED, ArchiveWriter
from server.jobs.storage.retention import Retention


class Hanging(Archive):
    """An archive on a disk that hangs until a test lets it go on."""

    go_on = Event()

    def save(self, *arguments: object) -> Path:
        self.go_on.wait()
        return super().save(*arguments)


def test_hanging_disk_blocks_neither_put_nor_close(folder: Path) -> None:
    Hanging.go_on.clear()
    writer = ArchiveWriter(Hanging(folder))
    writer.close(0.1)  # never started
    writer.start()
    for index in range(MAX_QUEUED + 2):
        writer.put(job(), image(index % 2))
    closing = Thread(target=writer.close, args=(0.1,))
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    Hanging.go_on.set()


def test_many_new_bytes_are_pruned_at_once(folder: Path) -> None:
    writer = ArchiveWriter(Archive(folder, Retention(max_bytes=1000)))
    writer.start()
    for index in range(20):
        writer.put(replace(job(), id=f"job_{index:032x}"), image(0, bytes(100)))
    writer.close(5)
    assert len(names(folder)) <= 12


def test_answer_and_last_event_wait_for_the_archive(folder: Path) -> None:
    Hanging.go_on.clear()

    async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
        accepted = await jobs.submit(new_job("job_00000000"))
        waiting = [asyncio.ensure_future(jobs.wait(accepted)), asyncio.ensure_future(last_event(jobs))]
        await asyncio.sleep(0)
        jobs.worker_queue.queues[0].on_message(finished("job_00000000"))
        await asyncio.sleep(0.1)
        assert not any(future.done() for future in waiting)
        Hanging.go_on.set()
        await asyncio.gather(*waiting)
        assert len(names(folder)) == 1

    async def last_event(jobs: EmbeddedJobs) -> object:
        return [event async for event in jobs.follow(await jobs.get("job_00000000"))][-1]

    play(story, archive=Hanging(folder))


def test_hanging_archive_delays_an_answer_only_for_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hanging.go_on.clear()
    monkeypatch.setattr(live_job, "SAVE_SECONDS", 0.05)

    async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
        accepted = await jobs.submit(new_job("job_00000000"))
        waiting = asyncio.ensure_future(jobs.wait(accepted))
        await asyncio.sleep(0)
        jobs.worker_queue.queues[0].on_message(finished("job_00000000"))
        ended, images = await waiting
        assert ended.state == "done" and len(images) == 1 and not folder.exists()
        Hanging.go_on.set()

    play(story, archive=Hanging(folder))


def test_image_with_the_name_of_another_servers_image_is_archived_too(folder: Path) -> None:
    writers = [ArchiveWriter(Archive(folder)) for _ in range(2)]
    same = [replace(job(), id=f"job_{index:032x}") for index in range(10)]
    for writer in writers:
        writer.start()
    for one in same:
        for writer in writers:
            writer.put(one, image(0, str(writer).encode()))
    for writer in writers:
        writer.close(10)
    assert len(names(folder)) == 20


def test_two_servers_that_prune_one_archive_keep_its_limit_and_fail_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retention = Retention(max_bytes=2000)
    writers = [ArchiveWriter(Archive(folder, retention)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for index in range(60):
        for number, writer in enumerate(writers):
            writer.put(replace(job(), id=f"job_{number}{index:031x}"), image(0, bytes(100))).result(10)
        assert len(names(folder)) <= 20 + 2 * 3, "each prunes after an eighth of the limit"
    for writer in writers:
        writer.close(10)
    assert len(names(folder)) >= 17
    assert not caplog.records
