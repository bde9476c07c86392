"""Advice of a checkpoint's authors to its users: the file `guide.json`, which a build copies to the plans."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from engine.errors import PlanCorrupt
from engine.size import Size

GUIDE_FILE = "guide.json"


@dataclass(frozen=True, slots=True)
class Guide:
    """Description of what a model draws well. A checkpoint without a guide has an empty one.

    Attributes:
        about: a sentence or two on what the model draws.
        sizes: sizes that it draws well, such as "256x192", the default first.
        examples: prompts to begin with.
    """

    about: str = ""
    sizes: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the guide of a plan directory or a checkpoint; return an empty one if there is none.

        Raises:
            PlanCorrupt: the file is damaged.
        """
        path = directory / GUIDE_FILE
        if not path.is_file():
            return cls()
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PlanCorrupt(f"{path} is damaged: {error}; mend or delete it, and build again") from error

    def covers(self, size: Size) -> bool:
        """Return True if width and height are between those of `sizes`, or if the guide names none."""
        known = [Size.parse(text) for text in self.sizes]
        widths, heights = [one.width for one in known], [one.height for one in known]
        return not known or (min(widths) <= size.width <= max(widths) and min(heights) <= size.height <= max(heights))
