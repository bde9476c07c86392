"""What a long build is doing: a bar per stage on a terminal, a line per stage in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class BuildProgress:
    """Stages one after the other, each timed; within a stage, any number of counted phases."""

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
        """Shows `name` while it runs and leaves a line with its seconds."""
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
        """Opens a counted part of the running stage; `total` None is one whose length nobody knows."""
        return Phase(self._bars, name, total)


class Phase:
    """One bar. TensorRT's monitor opens and closes them out of order, hence no context manager of its own."""

    def __init__(self, bars: Progress, name: str, total: int | None) -> None:
        self._bars = bars
        self._task: TaskID = bars.add_task(name, total=total)

    def advance(self) -> None:
        self._bars.advance(self._task)

    def finish(self) -> None:
        self._bars.remove_task(self._task)
