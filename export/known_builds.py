"""Finished builds by their inputs, so that a repeated build is found before PyTorch is imported.

A plan directory is named after the contents of its inputs, and hashing a checkpoint takes PyTorch and minutes. A record
stands for the same inputs as long as no file among them has another size or time of change, as in make.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine.files import version as file_version
from export import plan_directory

BUILDERS = ("tensorrt-rtx", "tensorrt-rtx-cu13")  # packages whose versions affect plans, where they are installed


def digest(options: Mapping[str, object], inputs: Iterable[Path]) -> str | None:
    """Return hex digits that stand for the inputs of a build; None if some cannot be read.

    Args:
        options: options that change the plans.
        inputs: files, and folders with all that is below them.
    """
    files: dict[str, tuple[int, int]] = {}
    try:
        for path in inputs:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                files[str(file.absolute())] = file_version(file)
        versions = plan_directory.plan_id(b"")
    except (OSError, PackageNotFoundError):
        return None
    known = [versions, [_version(name) for name in BUILDERS], options, files]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def find(output: Path, inputs: str, *, needs_verified: bool) -> Path | None:
    """Return the plan directory that was built from the inputs and make it the current one; None to build it.

    Args:
        inputs: their `digest`.
        needs_verified: True to find only plans that were compared with DiffSynth.
    """
    try:
        name = _record(output, inputs).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not name or Path(name).name != name:
        return None
    finished = output / name
    with plan_directory.exclusive(output, name):
        manifest = plan_directory.find_finished(finished)
        if manifest is None or (needs_verified and not manifest.is_verified):
            return None
        plan_directory.make_current(finished)
    return finished


def record(output: Path, inputs: str, finished: Path) -> None:
    """Remember the plan directory of the inputs."""
    with suppress(OSError):  # without a record, the next build finds the plans by the contents of its inputs
        _record(output, inputs).write_text(f"{finished.name}\n", encoding="utf-8")


def _record(output: Path, inputs: str) -> Path:
    return output / f".{inputs}.inputs"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
