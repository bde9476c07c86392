"""Archiving in a thread, so that no job waits for a slow or full disk. Knows the queue of images; no names."""

import logging
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime

from server.jobs.job import Job, StoredImage
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.retention import PRUNE_EVERY

log = logging.getLogger(__name__)

MAX_QUEUED = 64  # images that wait for a slow disk; more are not archived


class ArchiveWriter:
    """Writes images to an archive and prunes it, in a thread of its own."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._queue: queue.Queue[tuple[Job, StoredImage, Future[None]] | None] = queue.Queue(MAX_QUEUED)
        self._prune_due = 0.0  # by the monotonic clock
        self._bytes_since_prune = 0
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, job: Job, image: StoredImage) -> Future[None]:
        """Queue an image. Neither waits nor fails, since the job has its image in any case.

        Returns:
            A future that is done when the image is in the archive, or is given up.
        """
        done = Future[None]()
        try:
            self._queue.put_nowait((job, image, done))
        except queue.Full:
            log.error("image %d of %s is not archived: the disk is too slow", image.index, job.id)
            done.set_result(None)
        return done

    def close(self, seconds: float) -> None:
        """Write what is queued; give up after `seconds`."""
        if not self._thread.is_alive():
            return
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._prune_if_due()
            try:
                item = self._queue.get(timeout=PRUNE_EVERY)
            except queue.Empty:
                continue
            if item is None:
                return
            job, image, done = item
            try:
                self._save(job, image)
            except OSError as error:
                log.error("image %d of %s is not archived: %s", image.index, job.id, error)
            finally:
                done.set_result(None)

    def _save(self, job: Job, image: StoredImage) -> None:
        short_id = f"{job.id[-6:]}{image.index:02x}"
        try:
            self._archive.save(image.data, job.format.suffix, datetime.now(UTC), short_id)
        except FileExistsError:  # of another server, in the same second
            self._archive.save(image.data, job.format.suffix, datetime.now(UTC), secrets.token_hex(4))
        self._bytes_since_prune += len(image.data)

    def _prune_if_due(self) -> None:
        if time.monotonic() >= self._prune_due or self._archive.retention.is_due(self._bytes_since_prune):
            self._prune_due, self._bytes_since_prune = time.monotonic() + PRUNE_EVERY, 0
            try:
                self._archive.prune(datetime.now(UTC))
            except OSError as error:
                log.error("the archive %s is not pruned: %s", self._archive.folder, error)
