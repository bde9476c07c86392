"""Graphs that are functions, run on the host, and plan files for them that nobody reads."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from fakes.manifest import MANIFEST

from engine.backends.base import Bindings, Engine
from nano.tokenizer import write_tokenizer


class HostEngine(Engine):
    """Runs a function at once."""

    def __init__(self, function: Callable[[Mapping[str, np.ndarray]], None]) -> None:
        self._function = function

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == 0
        self._function(bindings)


def write_plans(folder: Path) -> Path:
    """A tokenizer, and plan files that nobody reads."""
    write_tokenizer(folder / "tokenizer")
    for graph in MANIFEST.graphs.values():
        (folder / graph.file).write_bytes(b"plan")
    return folder
