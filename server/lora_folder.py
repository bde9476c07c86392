"""The LoRA files of a folder, by the names that requests use. Knows no weights; the worker reads those."""

import re
from pathlib import Path

from engine.errors import LoraMismatch
from engine.request import MAX_LORA

NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_LORA}}}")


def find(folder: Path) -> tuple[tuple[str, Path], ...]:
    """Return (name, file) of each *.lora, and of each *.safetensors that `zimage-lora` wrote. Links are followed.

    A request can only name one of these, so no path in a request reaches the file system.

    Raises:
        LoraMismatch: a request cannot contain the name of a file, or two files have one name.
        OSError: there is no such folder.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.is_dir() or not _is_prepared(file):
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
    if file.suffix != ".safetensors":
        return file.suffix == ".lora"
    from engine.plan.lora import is_prepared  # takes a third of a second, so only for such files

    return is_prepared(file)
