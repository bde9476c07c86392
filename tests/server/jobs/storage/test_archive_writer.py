"""Archiving in a thread, when the disk hangs or much is new."""

from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from fakes.archive import names
from fakes.jobs import image, job

from server.jobs.storage.archive import Archive
from server.jobs.storage.archive_writer import MAX_QUEUED, ArchiveWriter
from server.jobs.storage.retention import Retention


def test_hanging_disk_blocks_neither_put_nor_close(folder: Path) -> None:
    hung = Event()

    class Hanging(Archive):
        def save(self, *_: object) -> Path:
            hung.wait()
            raise OSError("the disk is gone")

    writer = ArchiveWriter(Hanging(folder))
    writer.close(0.1)  # never started
    writer.start()
    for index in range(MAX_QUEUED + 2):
        writer.put(job(), image(index % 2))
    closing = Thread(target=writer.close, args=(0.1,))
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    hung.set()


def test_many_new_bytes_are_pruned_at_once(folder: Path) -> None:
    writer = ArchiveWriter(Archive(folder, Retention(max_bytes=1000)))
    writer.start()
    for index in range(20):
        writer.put(replace(job(), id=f"job_{index:032x}"), image(0, bytes(100)))
    writer.close(5)
    assert len(names(folder)) <= 12
