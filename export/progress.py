"""Progress of a build: bars on a terminal, a line per stage in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class BuildProgress:
    """Timed stages in sequence, each with any number of counted phases.

    Attributes:
        seconds: duration of each finished stage.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.seconds: dict[str, float] = {}
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs, then print a line with its seconds."""
        started = time.perf_counter()
        if not self.console.is_terminal:
            self.console.print(f"{name} ...", highlight=False)
        with self._bars:
            whole = self.start(name, None)
            try:
                yield
            finally:
                whole.finish()
        self.seconds[name] = time.perf_counter() - started
        self.console.print(f"{name}: {self.seconds[name]:.1f} s", highlight=False)

    def start(self, name: str, total: int | None) -> "Phase":
        """Start a phase of the running stage; `total` is None if its length is unknown."""
        return Phase(self._bars, name, total)


class Phase:
    """One bar, started and finished explicitly: TensorRT's monitor starts and finishes its phases out of order."""

    def __init__(self, bars: Progress, name: str, total: int | None) -> None:
        self._bars = bars
        self._task: TaskID = bars.add_task(name, total=total)

    def advance(self) -> None:
        self._bars.advance(self._task)

    def finish(self) -> None:
        self._bars.remove_task(self._task)
