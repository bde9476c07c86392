"""The LoRA files of a folder, by the names that requests use. Knows no weights; the worker reads those."""

import logging
import re
from pathlib import Path

from engine.errors import LoraMismatch
from engine.request import MAX_LORA

log = logging.getLogger(__name__)

SUFFIXES = (".lora", ".safetensors")
NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_LORA}}}")


def find(folder: Path) -> tuple[tuple[str, Path], ...]:
    """Return (name, file) of each *.lora, and of each *.safetensors that `zimage-lora` wrote. Links are followed.

    A request can only name one of these, so no path in a request reaches the file system. What is no regular file is
    skipped: opening a pipe would wait for ever.

    Raises:
        LoraMismatch: a request cannot contain the name of a file, or two files have one name.
        OSError: there is no such folder.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in SUFFIXES:
            continue
        if not file.is_file():
            log.warning("%s is skipped: it must be a regular file, or a link to one", file)
            continue
        if not _is_prepared(file):
            continue
        if not NAME.fullmatch(file.stem):
            raise LoraMismatch(
                f"{file}: a LoRA's name must be 1 to {MAX_LORA} letters, digits, dots, - and _; rename it"
            )
        if file.stem in found:
            raise LoraMismatch(f"{found[file.stem]} and {file} have the same name; rename or remove one")
        found[file.stem] = file.absolute()
    return tuple(found.items())


def _is_prepared(file: Path) -> bool:
    if file.suffix == ".lora":
        return True
    from engine.plan.lora import is_prepared  # takes a third of a second, so only for such files

    return is_prepared(file)
