"""A progress bar: one line on a terminal that each step writes anew. Writes nothing where there is no terminal."""

import os
import sys
import time
from typing import TextIO

WIDTH = 24  # characters
CLEAR = "\r\x1b[K"


class ProgressBar:
    """Counts steps of images.

    Args:
        images, steps: of all images.
        is_wanted: False to write nothing, on a terminal either.
    """

    def __init__(self, images: int, steps: int, *, is_wanted: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._images, self._steps = images, steps
        self._done, self._finished = 0, 0
        self._started = time.perf_counter()
        self._is_shown = is_wanted and self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def step(self) -> None:
        """Count a step."""
        self._done += 1
        self.show()

    def finish_image(self) -> None:
        """Count a finished image."""
        self._finished += 1

    def show(self, status: str | None = None) -> None:
        """Write the line: `status`, or how much is done."""
        if not self._is_shown:
            return
        full = WIDTH * self._done // max(self._steps, 1)
        counted = f"step {self._done} of {self._steps}"
        if self._images > 1:
            counted = f"image {min(self._finished + 1, self._images)} of {self._images}, {counted}"
        seconds = time.perf_counter() - self._started
        bar = f"[{'#' * full}{'.' * (WIDTH - full)}] {counted}, {seconds:.0f} s"
        self._stream.write(CLEAR + (status or bar))
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line, so that another can be printed."""
        if self._is_shown:
            self._stream.write(CLEAR)
            self._stream.flush()
