"""Atomic writing of files, and their versions."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name once all of it is written.

    The file is created at once, so an unwritable path fails before any work is done.
    """
    path = path.resolve()  # a symlink stays and its target is written
    try:
        if path.exists() and not path.is_file():  # for root, a rename would replace even a device
            raise OSError(errno.EINVAL, "it is not a regular file")
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        file = unfinished.open("xb")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    try:
        with file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise the OSError that `whole_file` would raise now; change nothing."""
    with suppress(_Unwritten), whole_file(path):
        raise _Unwritten


class _Unwritten(Exception):
    """Ends `whole_file` before the file appears."""


def version(file: Path) -> tuple[int, int]:
    """Return the size in bytes and the time of the last change in ns; both stay while nobody changes the file."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
