"""nvidia-smi that answers one query again and again, read in a thread. Knows no figures."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self


class RepeatedQuery:
    """Calls a function with each line that nvidia-smi prints while the block runs.

    There are no lines where nvidia-smi is not installed.

    Args:
        options: of nvidia-smi: the figures, and the GPUs if not all.
        interval: milliseconds between two answers.
        on_line: called in a thread, with a line of values that are separated by ", ".
    """

    def __init__(self, options: list[str], interval: float, on_line: Callable[[str], object]) -> None:
        self._arguments = [*options, "--format=csv,noheader,nounits", f"--loop-ms={interval:.0f}"]
        self._on_line = on_line
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        program = shutil.which("nvidia-smi")
        if program is not None:
            process = self._stack.enter_context(
                subprocess.Popen(
                    [program, *self._arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
            reader = threading.Thread(target=self._read, args=(process,), daemon=True)
            reader.start()
            self._stack.callback(reader.join)  # before its file is closed
            self._stack.callback(process.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._on_line(line.strip())
