"""Images in a folder, which several machines may share. Knows files; neither rows nor formats."""

import asyncio
import errno
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from server.errors import StoreUnavailable

T = TypeVar("T")

THREADS = 8  # a file system of the network may take seconds for a file
PRIVATE = 0o700  # mode of new folders: their files are for the server alone
PAGE = 1000  # jobs
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
ADVICE = {
    errno.ENOSPC: "free disk space, or keep fewer images",
    errno.EDQUOT: "the user's quota is used up; keep fewer images",
    errno.EACCES: "the server must be allowed to write there",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENOTDIR: "name a folder",
    errno.EEXIST: "name a folder",
    errno.ESTALE: "mount the network file system again",
    errno.EIO: "the disk fails; the kernel's log says more",
}


class FolderImages:
    """Files in FOLDER/JOB/; see `ImageStore`.

    A file is on the disk before `put` returns, and has its name only when it is complete.

    Args:
        folder: created if it does not exist; its parent must exist, so that no file lands beside a share that is not
            mounted.

    Raises:
        StoreUnavailable: it is no folder, or cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="images")
        try:
            folder.mkdir(mode=PRIVATE, exist_ok=True)
        except OSError as error:
            raise self._unavailable(error) from error

    async def put(self, job: str, name: str, media_type: str, data: bytes) -> None:  # noqa: ARG002 (for S3)
        await self._call(_write, self._folder / _checked(job), _checked(name), data)

    async def get(self, job: str, name: str) -> bytes | None:
        return await self._call(_read, self._folder / _checked(job) / _checked(name))

    async def delete(self, job: str) -> None:
        await self._call(_delete, self._folder / _checked(job))

    async def jobs_before(self, time: float) -> AsyncIterator[set[str]]:
        jobs = await self._call(_folders_before, self._folder, time)
        for start in range(0, len(jobs), PAGE):
            yield set(jobs[start : start + PAGE])

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> StoreUnavailable:
        advice = ADVICE.get(error.errno or 0, "check the folder and its disk")
        return StoreUnavailable(f"the folder of images {self._folder}: {error.strerror or error}; {advice}")


def _checked(name: str) -> str:
    """Return a name that stays within its folder. Raises ValueError for others, which a damaged database may have."""
    if not NAME.fullmatch(name):
        raise ValueError(f"expected a name of letters, digits, '_', '-' and '.', got {name[:80]!r}")
    return name


def _write(folder: Path, name: str, data: bytes) -> None:
    with suppress(FileExistsError):
        folder.mkdir(mode=PRIVATE)
        _sync(folder.parent)
    partial = folder / f".{name}.{secrets.token_hex(4)}.part"
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / name)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync(folder)


def _sync(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _delete(folder: Path) -> None:
    with suppress(FileNotFoundError):  # another process may delete it too
        shutil.rmtree(folder)


def _folders_before(folder: Path, time: float) -> list[str]:
    """Return the names of the folders in one that have not changed since `time`."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < time:
                    found.append(entry.name)
    return found
