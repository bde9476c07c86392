"""A folder that keeps generated images for a time and up to a size. Knows names, ages and bytes; no images."""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from server.jobs.storage.retention import ClockGuard, Retention

PARTIAL = Retention(max_age=3600.0)  # of half-written files; older ones are left from a crash
CLOCK_FILE = ".zimage-clock"
TIME = "%Y%m%d_%H%M%S"

SHORT_ID = re.compile(r"[0-9a-f]{8}")
SUFFIX = re.compile(r"\.(?:png|jpg|webp)")
NAME = re.compile(rf"(\.)?generated_([0-9]{{8}}_[0-9]{{6}})_{SHORT_ID.pattern}{SUFFIX.pattern}(?(1)\.part)")


@dataclass(frozen=True, slots=True)
class Archive:
    """Finished images in one folder, which other files and the archives of other processes may share.

    Attributes:
        folder: created if it does not exist.
        retention: of the images, by the time in their names.
    """

    folder: Path
    retention: Retention = field(default_factory=Retention)
    monotonic: Callable[[], float] = field(default=time.monotonic, compare=False)
    _clock_guard: ClockGuard = field(init=False, compare=False)

    def __post_init__(self) -> None:
        guard = ClockGuard("the archive", self.folder / CLOCK_FILE, self.monotonic)
        object.__setattr__(self, "_clock_guard", guard)  # the dataclass is frozen

    def require_usable(self) -> None:
        """Create the folder. Raises OSError if the path is no folder or cannot be written; a full disk is accepted."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(
                f"the archive {self.folder} is a file or a dangling link; name a folder"
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(
                f"the archive {self.folder} cannot be written; change its mode or name another folder"
            )

    def save(self, data: bytes, suffix: str, when: datetime, short_id: str) -> Path:
        """Write generated_YYYYMMDD_HHMMSS_ID, in UTC: all of it or nothing. Other processes see only whole files.

        Args:
            data: content of an image file.
            suffix: `ImageFormat.suffix`.
            when: time with a time zone.
            short_id: 8 lower-case hex digits.

        Raises:
            ValueError: the name would not have this form; nothing else of a request reaches the file system.
            OSError: the folder cannot be written or is full; FileExistsError if the image exists already.
        """
        name = _name(suffix, when, short_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, partial = self.folder / name, self.folder / f".{name}.part"
        file = partial.open("xb")  # of several writers of one image, only one can create it
        try:
            with file:
                file.write(data)
            if os.path.lexists(path):
                raise FileExistsError(f"{path} exists already")
            os.replace(partial, path)  # noqa: PTH105 (a test watches it)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return path

    def prune(self, now: datetime) -> int:
        """Delete expired images, and half-written files that a crash has left. Other files are not touched.

        The age of an image is that of its name, so copying a folder makes nothing younger. An image from the future,
        after the clock was set back, counts as new.

        Returns:
            The number of deleted files.
        """
        files = sorted(self._files(), key=lambda file: (file.time, file.path.name))
        images = [file for file in files if not file.is_partial]
        partial = [file for file in files if file.is_partial]
        total, seconds = sum(file.size for file in images), now.timestamp()
        retention = self._clock_guard.apply(self.retention, seconds, images[-1].time if images else None)
        expired = retention.expired(images, seconds, total) + PARTIAL.expired(partial, seconds, 0)
        for file in expired:
            file.path.unlink(missing_ok=True)  # another process may prune too
        return len(expired)

    def _files(self) -> Iterator["_File"]:
        """Yield the regular files with names of an archive."""
        if not self.folder.exists():
            return
        with os.scandir(self.folder) as found:
            for file in found:
                match = NAME.fullmatch(file.name)
                taken = _time(match[2]) if match else None
                if match is None or taken is None or not file.is_file(follow_symlinks=False):
                    continue
                try:
                    size = file.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # finished, or deleted by another process
                    continue
                yield _File(Path(file.path), taken, size, is_partial=match[1] is not None)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    time: float  # of its name, in unix seconds
    size: int  # bytes
    is_partial: bool


def _name(suffix: str, when: datetime, short_id: str) -> str:
    if not SHORT_ID.fullmatch(short_id):
        raise ValueError(f"an id must be 8 lower-case hex digits, got {short_id[:40]!r}")
    if not SUFFIX.fullmatch(suffix):
        raise ValueError(f"a suffix must be .png, .jpg or .webp, got {suffix[:40]!r}")
    if when.tzinfo is None:
        raise ValueError(f"a time must have a time zone, got {when}")
    return f"generated_{when.astimezone(UTC):{TIME}}_{short_id}{suffix}"


def _time(text: str) -> float | None:
    """Return unix seconds; None for digits that are no time."""
    try:
        return datetime.strptime(text, TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
