"""What executes one graph, whoever does it: allocates when it is constructed and only enqueues after that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.backends.memory import Memory
from engine.errors import LoraMismatch
from engine.plan.lora import PreparedLora
from engine.plan.manifest import Graph, GraphName

Bindings = Mapping[str, Any]


class Engine(Protocol):
    """One graph, ready to run."""

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        """Starts the graph on `stream`.

        Args:
            stream: CUDA stream handle; 0 on a CPU, where the call returns when the outputs are written.
            bindings: every input and output of the graph by name, C-contiguous, of the dtype the manifest gives:
                arrays on a CPU, `DeviceTensor`s on a GPU. Nothing is set anew as long as the same ones are passed.
        """
        ...

    def refit(self, lora: PreparedLora | None) -> None:
        """Puts a LoRA into the graph's weights, in place of any other; None restores them bit for bit."""
        if lora is not None:
            raise LoraMismatch(f"a {type(self).__name__} has weights that cannot be swapped")

    def keep(self, keep: bool) -> None:  # noqa: ARG002
        """While on, bindings that are new are prepared for good: kernels, CUDA graph and all."""
        return

    def close(self) -> None:
        """Frees what the engine holds; it runs no more."""
        return


@dataclass(frozen=True, slots=True)
class Backend:
    """The engines of a plan directory and the memory that their tensors lie in."""

    memory: Memory
    engines: Mapping[GraphName, Engine]
    close: Callable[[], None] = lambda: None


def check_bindings(graph: Graph, bindings: Bindings) -> None:
    """Asserts our own invariant: names, dtypes and layout of the bindings are those of the graph."""
    for spec in (*graph.inputs, *graph.outputs):
        array = bindings[spec.name]
        assert array.dtype == spec.dtype, f"{spec.name}: {array.dtype}, the graph has {spec.dtype}"
        assert array.flags.c_contiguous, f"{spec.name} is not contiguous"
