"""LoRAs that requests use by name, read from their files when they are applied.

Knows names, files and the pipeline; not the order of LoRAs.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.errors import LoraMismatch
from engine.files import version
from engine.pipeline import Pipeline
from engine.plan.lora import PreparedLora

log = logging.getLogger(__name__)


class LoraRegistry:
    """Files that `zimage-lora` wrote, by name. A file that changes is refused.

    Args:
        versions: of files that were seen before, by name; see `engine.files.version`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        files: Mapping[str, Path] | None = None,
        versions: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self._pipeline, self._files = pipeline, dict(files or {})
        self._versions = dict(versions or {})  # others are added when a file is first read

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may use."""
        return tuple(self._files)

    def check(self) -> tuple[str, ...]:
        """Read every file, and return a message for each that cannot be used with these plans."""
        problems = []
        for name in self._files:
            try:
                self._read(name)
            except LoraMismatch as error:
                problems.append(f"LoRA {name}: {error}")
        return tuple(problems)

    def apply(self, name: str | None) -> Iterator[None]:
        """Apply a LoRA to the plans in place of any other, in portions; None restores them.

        Raises:
            LoraMismatch: the LoRA cannot be used now; nothing was changed. The log has the reason and the file's path.
            PlanCorrupt: see `Pipeline.refit`.
        """
        try:
            lora = None if name is None else self._read(name)
        except LoraMismatch as error:
            log.error("LoRA %s: %s", name, error)
            raise LoraMismatch(f"the LoRA {name!r} cannot be used now; the log says why") from error
        yield from self._pipeline.refit_in_portions(lora)

    def _read(self, name: str) -> PreparedLora:
        """Read a LoRA and check it against the plans.

        Raises:
            LoraMismatch: it cannot be used.
        """
        file = self._files[name]
        lora = PreparedLora.read(file)
        lora.require_match(self._pipeline.manifest)
        try:
            found = version(file)
        except OSError as error:
            raise LoraMismatch(f"cannot read {file}: {error}") from error
        if self._versions.setdefault(name, found) != found:
            raise LoraMismatch(f"{file} has changed since it was first read; restart to use it")
        return lora
