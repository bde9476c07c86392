"""LoRAs that requests ask for by name, read from their files when it is their turn.

Knows names, files and the pipeline; not whose turn it is.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from engine.errors import LoraMismatch
from engine.pipeline import Pipeline
from engine.plan.lora import PreparedLora

log = logging.getLogger(__name__)


class LoraRegistry:
    """Files that `zimage-lora` wrote, by their names. A name stands for one LoRA: a file that changes is not used."""

    def __init__(self, pipeline: Pipeline, files: Mapping[str, Path] | None = None) -> None:
        self._pipeline, self._files = pipeline, dict(files or {})
        self._seen: dict[str, tuple[int, int]] = {}  # size and time of change, when it was first read

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def check(self) -> tuple[str, ...]:
        """Reads each, and says why those that the plans cannot take cannot be used."""
        found = []
        for name in self._files:
            try:
                self._read(name)
            except LoraMismatch as error:
                found.append(f"LoRA {name}: {error}")
        return tuple(found)

    def put_in(self, name: str | None) -> float:
        """Puts a LoRA into the plans, in place of any other; None restores them.

        Returns:
            Seconds that it took.

        Raises:
            LoraMismatch: it cannot be used now, and nothing was changed; the log says why, with the file's place.
            PlanCorrupt: as `Pipeline.refit` says.
        """
        try:
            lora = None if name is None else self._read(name)
        except LoraMismatch as error:
            log.error("LoRA %s: %s", name, error)
            raise LoraMismatch(f"the LoRA {name!r} cannot be used now; the log says why") from error
        seconds = self._pipeline.refit(lora)
        log.info("LoRA %s is in the plans after %.2f s", name, seconds)
        return seconds

    def _read(self, name: str) -> PreparedLora:
        """Raises LoraMismatch."""
        file = self._files[name]
        lora = PreparedLora.read(file)
        lora.require_match(self._pipeline.manifest)
        try:
            stat = file.stat()
        except OSError as error:
            raise LoraMismatch(f"cannot read {file}: {error}") from error
        seen = stat.st_size, stat.st_mtime_ns
        if self._seen.setdefault(name, seen) != seen:
            raise LoraMismatch(f"{file} has changed since it was first read; start again to use it")
        return lora
