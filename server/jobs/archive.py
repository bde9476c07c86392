"""A folder that keeps what was generated, for a time and up to a size. Knows names, ages and bytes; no images."""

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.jobs.job import Job, StoredImage

log = logging.getLogger(__name__)

DAY = 24 * 3600.0  # seconds
UNFINISHED = 3600.0  # seconds after which what is half-written is taken for a crash's
SWEEP_EVERY = 600.0  # seconds
BACKLOG = 64  # images that wait for a slow disk; more are not kept
TIME = "%Y%m%d_%H%M%S"

SHORT_ID = re.compile(r"[0-9a-f]{8}")
SUFFIX = re.compile(r"\.(?:png|jpg|webp)")
NAME = re.compile(rf"(\.)?generated_([0-9]{{8}}_[0-9]{{6}})_{SHORT_ID.pattern}{SUFFIX.pattern}(?(1)\.part)")


@dataclass(frozen=True, slots=True)
class Archive:
    """Finished images in one folder, which other files and other processes' archives may share.

    Attributes:
        folder: made by the first `save`.
        max_age: seconds; None keeps images for ever.
        max_bytes: of all images together; None for no limit.
    """

    folder: Path
    max_age: float | None = 7 * DAY
    max_bytes: int | None = None

    def save(self, data: bytes, suffix: str, when: datetime, short_id: str) -> Path:
        """Writes generated_YYYYMMDD_HHMMSS_ID, in UTC: all of it or nothing. Other processes see only whole files.

        Args:
            data: an image's file.
            suffix: `ImageFormat.suffix`.
            when: aware of its time zone.
            short_id: 8 digits of lower-case hex.

        Raises:
            ValueError: a name that is not of this form; nothing of a request reaches the file system otherwise.
            OSError: the folder cannot be written or is full; FileExistsError if the image is there already.
        """
        name = _name(suffix, when, short_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, unfinished = self.folder / name, self.folder / f".{name}.part"
        file = unfinished.open("xb")  # whoever has made it is the only one to write this image
        try:
            with file:
                file.write(data)
            if os.path.lexists(path):
                raise FileExistsError(f"{path} is there already")
            os.replace(unfinished, path)  # noqa: PTH105 (Path.replace is the same, less its plain name)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return path

    def sweep(self, now: datetime) -> int:
        """Removes what is too old, then the oldest until `max_bytes` holds, and what a crash left half-written.

        Age is what the name says: copying a folder makes nothing younger. What is from the future, since the clock
        was set back, is as good as new. Only regular files with names of this archive's form are touched.

        Returns:
            the number of files removed.
        """
        entries = sorted(self._entries(), key=lambda entry: (entry.made, entry.path.name))
        kept = [entry for entry in entries if not self._expired(entry, now)]
        removed = [entry for entry in entries if self._expired(entry, now)]
        images = [entry for entry in kept if entry.finished]
        surplus = 0 if self.max_bytes is None else sum(entry.size for entry in images) - self.max_bytes
        for entry in images:
            if surplus <= 0:
                break
            removed.append(entry)
            surplus -= entry.size
        for entry in removed:
            entry.path.unlink(missing_ok=True)  # another process may sweep as well
        return len(removed)

    def _expired(self, entry: "_Entry", now: datetime) -> bool:
        limit = self.max_age if entry.finished else UNFINISHED
        return limit is not None and now - entry.made > timedelta(seconds=limit)

    def _entries(self) -> Iterator["_Entry"]:
        if not self.folder.exists():
            return
        with os.scandir(self.folder) as found:
            for file in found:
                match = NAME.fullmatch(file.name)
                made = _time(match[2]) if match else None
                if match is None or made is None or not file.is_file(follow_symlinks=False):
                    continue
                try:
                    size = file.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # finished, or swept by another process
                    continue
                yield _Entry(Path(file.path), made, size, finished=match[1] is None)


class Archivist:
    """Writes images to an archive and sweeps it, in a thread of its own: nothing waits for a slow or full disk."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._waiting: queue.Queue[tuple[Job, StoredImage] | None] = queue.Queue(BACKLOG)
        self._sweep_due = 0.0  # by the monotonic clock
        self._unswept = 0  # bytes
        self._thread = threading.Thread(target=self._run, name="archivist", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def keep(self, job: Job, image: StoredImage) -> None:
        """Does not wait, and does not fail: the job has its image anyway."""
        try:
            self._waiting.put_nowait((job, image))
        except queue.Full:
            log.error("image %d of %s is not archived: the disk does not keep up", image.index, job.id)

    def close(self, seconds: float) -> None:
        """Waits for what is to be written, but no longer than that."""
        if not self._thread.is_alive():
            return
        with suppress(queue.Full):
            self._waiting.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                self._sweep()
                kept = self._waiting.get(timeout=SWEEP_EVERY)
                if kept is None:
                    return
                job, image = kept
                short_id = f"{job.id[-6:]}{image.index:02x}"
                self._archive.save(image.data, job.format.suffix, datetime.now(UTC), short_id)
                self._unswept += len(image.data)
            except queue.Empty:
                continue
            except OSError as error:
                log.error("the archive %s: %s", self._archive.folder, error)

    def _sweep(self) -> None:
        """Now and then, and when much is new."""
        limit = self._archive.max_bytes
        if time.monotonic() >= self._sweep_due or (limit is not None and self._unswept > limit // 8):
            self._sweep_due, self._unswept = time.monotonic() + SWEEP_EVERY, 0
            self._archive.sweep(datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    made: datetime
    size: int  # bytes
    finished: bool


def _name(suffix: str, when: datetime, short_id: str) -> str:
    if not SHORT_ID.fullmatch(short_id):
        raise ValueError(f"an id must be 8 digits of lower-case hex, got {short_id[:40]!r}")
    if not SUFFIX.fullmatch(suffix):
        raise ValueError(f"a suffix must be .png, .jpg or .webp, got {suffix[:40]!r}")
    if when.tzinfo is None:
        raise ValueError(f"a time must know its time zone, got {when}")
    return f"generated_{when.astimezone(UTC):{TIME}}_{short_id}{suffix}"


def _time(text: str) -> datetime | None:
    """None for digits that are no time."""
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
