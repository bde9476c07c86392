"""LoRAs that requests use by name, read from their files when they are applied.

Knows names, files and the pipeline; not the order of LoRAs.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.errors import InvalidRequest, LoraMismatch
from engine.files import version
from engine.pipeline import Pipeline
from engine.plan.lora import PreparedLora
from engine.request import ImageRequest, LoraChoice

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
        self._strengths: dict[str, tuple[float, float]] = {}  # smallest and largest, of files that were read

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

    def require_strength(self, request: ImageRequest) -> None:
        """Check that a request's LoRA can be applied at its strength, if the LoRA's file was read before.

        Raises:
            InvalidRequest: it cannot.
        """
        choice = request.lora_choice
        low, high = (0.0, 0.0) if choice is None else self._strengths.get(choice.name, (-math.inf, math.inf))
        if choice is not None and not low <= choice.strength <= high:
            raise InvalidRequest(
                f"lora_strength must be between {low:g} and {high:g} for the LoRA {choice.name!r}, "
                f"whose weights exceed FP16 beyond; got {choice.strength:g}",
                "lora_strength",
            )

    def apply(self, choice: LoraChoice | None) -> Iterator[None]:
        """Apply a LoRA to the plans in place of any other, in portions; None restores them.

        Raises:
            LoraMismatch: the LoRA cannot be used now; nothing was changed. The log has the reason and the file's path.
            PlanCorrupt: see `Pipeline.refit`.
        """
        try:
            lora = None if choice is None else self._read(choice.name).at(choice.strength)
        except LoraMismatch as error:
            assert choice is not None
            log.error("LoRA %s: %s", choice, error)
            raise LoraMismatch(f"the LoRA {choice.name!r} cannot be used now; the log says why") from error
        yield from self._pipeline.refit_in_portions(lora)

    def _read(self, name: str) -> PreparedLora:
        """Read a LoRA and check it against the plans.

        Raises:
            LoraMismatch: it cannot be used.
        """
        file = self._files[name]
        lora = PreparedLora.read(file)
        lora.require_match(self._pipeline.manifest)
        self._strengths[name] = lora.about.strengths
        try:
            found = version(file)
        except OSError as error:
            raise LoraMismatch(f"cannot read {file}: {error}") from error
        if self._versions.setdefault(name, found) != found:
            raise LoraMismatch(f"{file} has changed since it was first read; restart to use it")
        return lora
