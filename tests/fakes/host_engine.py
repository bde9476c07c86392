"""Graphs as functions on the host, and placeholder plan files for them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from fakes.manifest import MANIFEST

from engine.backends.base import Bindings, Engine
from nano.tokenizer import write_tokenizer


class HostEngine(Engine):
    """An engine that calls a function."""

    def __init__(self, function: Callable[[Mapping[str, np.ndarray]], None]) -> None:
        self._function = function

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == 0
        self._function(bindings)


def write_plans(folder: Path) -> Path:
    """Write a tokenizer, and plan files that no engine reads."""
    write_tokenizer(folder / "tokenizer")
    for graph in MANIFEST.graphs.values():
        (folder / graph.file).write_bytes(b"plan")
    return folder
