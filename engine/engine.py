"""What executes one graph, whoever does it: allocates when it is constructed and only enqueues after that."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from engine.errors import LoraMismatch
from engine.lora import PreparedLora
from engine.manifest import Graph

Bindings = Mapping[str, np.ndarray[Any, Any]]


class Engine(Protocol):
    """One graph, ready to run."""

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        """Starts the graph on `stream`.

        Args:
            stream: CUDA stream handle; 0 on a CPU, where the call returns when the outputs are written.
            bindings: every input and output of the graph by name, C-contiguous, of the dtype the manifest gives.
                Addresses are kept as long as the same arrays are passed.
        """
        ...

    def refit(self, lora: PreparedLora | None) -> None:
        """Puts a LoRA into the graph's weights, in place of any other; None restores them bit for bit."""
        if lora is not None:
            raise LoraMismatch(f"a {type(self).__name__} has weights that cannot be swapped")


def check_bindings(graph: Graph, bindings: Bindings) -> None:
    """Asserts our own invariant: names, dtypes and layout of the bindings are those of the graph."""
    for spec in (*graph.inputs, *graph.outputs):
        array = bindings[spec.name]
        assert array.dtype == spec.dtype, f"{spec.name}: {array.dtype}, the graph has {spec.dtype}"
        assert array.flags.c_contiguous, f"{spec.name} is not contiguous"
