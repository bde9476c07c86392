"""Archiving in a thread, so that no job waits for a slow or full disk. Knows the queue of images; no names."""

import logging
import queue
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from server.jobs.job import Job, StoredImage
from server.jobs.storage.archive import Archive
from server.jobs.storage.retention import PRUNE_EVERY

log = logging.getLogger(__name__)

MAX_QUEUED = 64  # images that wait for a slow disk; more are not archived


class ArchiveWriter:
    """Writes images to an archive and prunes it, in a thread of its own."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._queue: queue.Queue[tuple[Job, StoredImage] | None] = queue.Queue(MAX_QUEUED)
        self._prune_due = 0.0  # by the monotonic clock
        self._bytes_since_prune = 0
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, job: Job, image: StoredImage) -> None:
        """Queue an image. Neither waits nor fails, since the job has its image in any case."""
        try:
            self._queue.put_nowait((job, image))
        except queue.Full:
            log.error("image %d of %s is not archived: the disk is too slow", image.index, job.id)

    def close(self, seconds: float) -> None:
        """Write what is queued; give up after `seconds`."""
        if not self._thread.is_alive():
            return
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                self._prune_if_due()
                item = self._queue.get(timeout=PRUNE_EVERY)
                if item is None:
                    return
                job, image = item
                short_id = f"{job.id[-6:]}{image.index:02x}"
                self._archive.save(image.data, job.format.suffix, datetime.now(UTC), short_id)
                self._bytes_since_prune += len(image.data)
            except queue.Empty:
                continue
            except OSError as error:
                log.error("the archive %s: %s", self._archive.folder, error)

    def _prune_if_due(self) -> None:
        if time.monotonic() >= self._prune_due or self._archive.retention.is_due(self._bytes_since_prune):
            self._prune_due, self._bytes_since_prune = time.monotonic() + PRUNE_EVERY, 0
            self._archive.prune(datetime.now(UTC))
