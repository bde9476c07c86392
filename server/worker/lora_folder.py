"""The LoRAs that requests may ask for: a folder's, by their files' names. Knows no weights; the worker reads those."""

import re
from pathlib import Path

from engine.errors import LoraMismatch
from engine.request import MAX_LORA

NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_LORA}}}")


def find(folder: Path) -> tuple[tuple[str, Path], ...]:
    """Name and file of each: *.lora, and what `zimage-lora` wrote of *.safetensors; links are followed.

    Requests are compared with these names and nothing else, so no path of theirs reaches the file system.

    Raises:
        LoraMismatch: a file whose name cannot be asked for, or is another's too.
        OSError: there is no such folder.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.is_dir() or not _is_one(file):
            continue
        if not NAME.fullmatch(file.stem):
            raise LoraMismatch(
                f"{file}: the name of a LoRA has up to {MAX_LORA} letters, digits, dots, - and _; rename it"
            )
        if file.stem in found:
            raise LoraMismatch(f"{found[file.stem]} and {file} have one name; rename or remove one")
        found[file.stem] = file.absolute()
    return tuple(found.items())


def _is_one(file: Path) -> bool:
    if file.suffix != ".safetensors":
        return file.suffix == ".lora"
    from engine.plan.lora import is_prepared  # a third of a second, which no start without such files waits for

    return is_prepared(file)
