"""The LoRA files of a folder, by the names that requests use. Knows no weights; the worker reads those."""

import logging
import re
from pathlib import Path

from engine.errors import LoraMismatch
from engine.plan.manifest import Manifest
from engine.request import MAX_LORA

log = logging.getLogger(__name__)

SUFFIXES = (".lora", ".safetensors")
OTHER_FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".gguf")
NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_LORA}}}")


def find(folder: Path, manifest: Manifest) -> tuple[tuple[str, Path], ...]:
    """Return (name, file) of each LoRA that `zimage-lora` prepared for these plans. Links are followed.

    The log says which files are skipped, and why. A request can only name one of the others, so no path in a request
    reaches the file system.

    Raises:
        LoraMismatch: the plans are not refittable, a request cannot contain the name of a file, or two files have one
            name.
        OSError: there is no such folder.
    """
    from engine.plan.lora import require_refittable  # takes a third of a second, so only where there is a folder

    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SUFFIXES + OTHER_FORMATS:
            continue
        if reason := _unusable(file, manifest):
            log.warning("%s is skipped: %s", file, reason)
            continue
        if not NAME.fullmatch(file.stem):
            raise LoraMismatch(
                f"{file}: a LoRA's name must be 1 to {MAX_LORA} letters, digits, dots, - and _; rename it"
            )
        if file.stem in found:
            raise LoraMismatch(f"{found[file.stem]} and {file} have the same name; rename or remove one")
        found[file.stem] = file.absolute()
    if found:
        require_refittable(manifest)
    return tuple(found.items())


def _unusable(file: Path, manifest: Manifest) -> str | None:
    """Return the reason why a file is no LoRA for these plans, or None. Only the head of the file is read."""
    from engine.plan.lora import read_about

    if file.name.startswith("._"):
        return "macOS wrote it beside the LoRA of the same name"
    if not file.is_file():  # opening a pipe would wait for ever
        return "it must be a regular file, or a link to one"
    if file.suffix.lower() in OTHER_FORMATS:
        return f"{file.suffix} files are not read; LoRAs must be safetensors files"
    try:
        about = read_about(file)
        if manifest.refittable:
            about.require_match(manifest)
    except LoraMismatch as error:
        return str(error)
    return None
