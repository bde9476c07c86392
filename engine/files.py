"""Atomic writing of files, and their versions."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name once all of it is written.

    The file is created at once, so an unwritable path fails before any work is done.
    """
    try:
        path = Path(os.path.realpath(path))  # a symlink stays and its target is written
        if path.is_symlink():  # in a loop: all others are resolved
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if path.exists() and not path.is_file():  # for root, a rename would replace even a device
            raise OSError(errno.EINVAL, "it is not a regular file")
        # random, since a process in a container has the id of the one before it, which may have left its file
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
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
