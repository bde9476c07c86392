"""Figures of one part of `zimage-bench gpu-check`, kept in a file while the part runs.

A part that hangs or crashes loses only what it had not added yet. Imports the standard library only.
"""

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Figures = dict[str, Any]
Device = Literal["cuda", "cpu"]


class CheckFailed(Exception):
    """A part ran and its result is wrong."""


class LeftOut(Exception):
    """A part cannot run here, for a reason that is no failure."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options that every part gets.

    Attributes:
        folder: folder of the report, of plans and of everything that parts leave for each other.
        layers: full-width transformer layers of the checked model.
        quick: tiny sizes and few runs, to see that every part works.
        variant: name of the build variant that the part is about; "" if it is about none.
    """

    folder: Path
    device: Device
    layers: int
    quick: bool
    variant: str = ""


class Findings:
    """Figures of a part, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.figures: Figures = {}
        self._write()

    def add(self, **figures: Any) -> None:
        """Add figures and write the file."""
        self.figures |= figures
        self._write()

    def answer(self, text: str) -> None:
        """Set the line that answers the part's question in the report."""
        self.add(answer=text)

    def add_cases(self, cases: Mapping[str, Callable[[], Figures]]) -> None:
        """Run cases one after the other and add the figures of each; a case that fails does not stop the next.

        Raises:
            CheckFailed: at least one failed.
        """
        failed: dict[str, str] = {}
        for name, case in cases.items():
            print(f"{name} ...", flush=True)
            try:
                figures = case()
            except Exception as error:  # noqa: BLE001  reported below, whatever it is
                traceback.print_exc()
                failed[name] = describe(error)
                figures = {"failed": failed[name]}
            self.add(**{name: figures})
        if failed:
            name, why = next(iter(failed.items()))
            raise CheckFailed(f"{len(failed)} of {len(cases)} failed ({', '.join(failed)}); {name}: {why}")

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.figures, indent=1, default=str) + "\n")
        unfinished.replace(self._file)


def figures_file(folder: Path, part: str) -> Path:
    """Return the file of a part's figures."""
    return folder / "figures" / f"{part}.json"


def read_figures(folder: Path, part: str) -> Figures:
    """Return the figures that a part has added; none if it has not run."""
    file = figures_file(folder, part)
    try:
        found: Figures = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def describe(error: BaseException) -> str:
    """Return an exception's type and the first lines of its message."""
    return f"{type(error).__name__}: {str(error)[:400]}"
