"""Plan directories, which are written completely or not at all.

In the name `<output>/<name>-<precision>-<flavor>-<plan id>/` the plan id hashes all inputs, so that a second build with
the same inputs finds the directory. It is filled under a temporary name and renamed once its manifest is written.
`current` in the output directory points to the newest; it is a link, or a file where there are no links. A file
lock serialises builders of the same plans.
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import filelock

from engine.errors import BuildError, PlanError
from engine.plan.directory import CURRENT, MANIFEST_FILE, read, sha256
from engine.plan.manifest import File, Manifest

log = logging.getLogger(__name__)

UNFINISHED = ".building-"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # FAT, SMB, FUSE
LIBRARIES = ("torch", "onnxscript", "onnx-ir", "diffsynth", "transformers")  # their versions affect the graphs


def plan_id(draft: bytes) -> str:
    """Return 12 hex digits that hash the draft manifest, this package's source and the libraries' versions."""
    source = [sha256(file) for file in sorted(Path(__file__).parent.rglob("*.py"))]
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    return hashlib.sha256(b"\n".join([draft, *(line.encode() for line in source + versions)])).hexdigest()[:12]


def find_finished(directory: Path) -> Manifest | None:
    """Return the manifest of a directory whose files are complete and unchanged, else None."""
    try:
        return read(directory)
    except (PlanError, OSError):
        return None


@contextmanager
def exclusive(output: Path, name: str) -> Iterator[None]:
    """Hold the lock of one plan directory; wait while another process builds the same plans."""
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = _lock(output, name)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("another process is building %s; waiting for it", output / name)
            lock.acquire()
        _sweep(output)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unfinished(output: Path, name: str) -> Iterator[Path]:
    """Make an empty directory to build in; it is removed if the build fails or is interrupted."""
    directory = output / f"{UNFINISHED}{name}"
    shutil.rmtree(directory, ignore_errors=True)
    try:
        with disk_errors(output):
            directory.mkdir()
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # already renamed by `publish` after a successful build


def publish(unfinished: Path, finished: Path) -> None:
    """Rename a complete directory to its final name and point `current` to it."""
    for file in unfinished.rglob("*"):
        if file.is_file():
            _sync(file)
    shutil.rmtree(finished, ignore_errors=True)  # damaged, or not compared with DiffSynth
    unfinished.rename(finished)
    make_current(finished)


def make_current(finished: Path) -> None:
    """Point `current` to a plan directory, atomically; see `engine.plan.directory.current`."""
    link = finished.parent / f"{UNFINISHED}{CURRENT}-{finished.name}"  # one per plan directory, for parallel builders
    link.unlink(missing_ok=True)
    _make_room(finished.parent / CURRENT)
    try:
        link.symlink_to(finished.name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        link.write_text(f"{finished.name}\n")
    link.replace(finished.parent / CURRENT)
    _sync(finished.parent)


def _make_room(current: Path) -> None:
    """Move plans away that a copy has put in the place of the link `current`."""
    if current.is_symlink() or not current.is_dir():
        return
    try:
        manifest = read(current, verify=False)
    except (PlanError, OSError) as error:
        raise BuildError(f"{current} is a folder without plans, where a link belongs; remove it") from error
    copy = current.with_name(f"{manifest.plan_id}-copy")
    shutil.rmtree(copy, ignore_errors=True)  # of the same plans
    current.rename(copy)
    log.warning("%s was a folder with plans; it is %s now", current, copy)


def list_files(directory: Path) -> tuple[File, ...]:
    """Return all files below the directory except the manifest, with sizes and hashes."""
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)
    return tuple(File(str(p.relative_to(directory)), p.stat().st_size, sha256(p)) for p in paths)


def require_space(output: Path, needed: int) -> None:
    """Raise BuildError before the build if the disk has too little space."""
    existing = next(p for p in (output, *output.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BuildError(
            f"{output} has {free / 1e6:,.0f} MB free, the build needs about {needed / 1e6:,.0f} MB; free some, or "
            "choose another --output"
        )


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn file system errors into BuildErrors that name the directory."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BuildError(f"no space left for the build in {output}; nothing was kept") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
            raise BuildError(f"cannot write to {output}: {error.strerror} ({error.filename})") from error
        raise


def _lock(output: Path, name: str) -> filelock.FileLock:
    return filelock.FileLock(output / f".{name}.lock")


def _sweep(output: Path) -> None:
    """Remove unfinished directories of interrupted builds, those whose lock is free."""
    for leftover in output.glob(f"{UNFINISHED}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            with suppress(filelock.Timeout), _lock(output, leftover.name.removeprefix(UNFINISHED)).acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot sync a directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
