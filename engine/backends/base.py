"""The interface of execution backends: an engine runs one graph, a backend holds the engines of a plan directory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from engine.backends.memory import Memory
from engine.errors import LoraMismatch, ZImageError
from engine.plan.lora import PreparedLora
from engine.plan.manifest import Graph, GraphName

Bindings = Mapping[str, Any]


class Engine(Protocol):
    """One graph, ready to run. The constructor allocates; later calls only enqueue."""

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        """Enqueue the graph on a stream.

        Args:
            stream: CUDA stream handle; 0 on a CPU, where the call returns once the outputs are written.
            bindings: every input and output of the graph by name, C-contiguous, of the manifest's dtype: arrays on a
                CPU, `DeviceTensor`s on a GPU. Passing the same ones again costs nothing.
        """
        ...

    def refit(self, lora: PreparedLora | None) -> Iterator[None]:
        """Apply a LoRA to the graph's weights in place of any other; None restores them bit for bit.

        The work is done in portions, as the iterator is advanced. The graph runs again once it is exhausted.
        """
        if lora is not None:
            raise LoraMismatch(f"the weights of {type(self).__name__} cannot be changed")
        return iter(())

    def pin_bindings(self, pin: bool) -> None:  # noqa: ARG002
        """While `pin` is on, prepare new bindings permanently, with kernels and CUDA graph."""
        return

    def save_kernels(self) -> None:
        """Write kernels that were compiled since the last call to their file, for the next start."""
        return

    def close(self) -> None:
        """Free the engine's resources. It cannot run afterwards."""
        return


@dataclass(frozen=True, slots=True)
class Backend:
    """The engines of a plan directory, and the memory of their tensors.

    Attributes:
        device: GPU and driver, for messages.
        processor: name of the GPU or of the CPU.
        threads: CPU threads of each graph; 0 on a GPU.
    """

    memory: Memory
    engines: Mapping[GraphName, Engine]
    close: Callable[[], None] = lambda: None
    device: str = "CPU"
    processor: str = ""
    threads: int = 0

    def refit(self, lora: PreparedLora | None) -> Iterator[None]:
        """Apply a LoRA to every graph in place of any other, in portions; None restores them bit for bit.

        Raises:
            PlanCorrupt: the plans were altered after they were loaded; engines that still run have no LoRA.
        """
        try:
            for engine in self.engines.values():
                yield from engine.refit(lora)
            self.memory.synchronize()
        except GeneratorExit:  # abandoned, as when the process ends
            raise
        except BaseException:
            for engine in self.engines.values():
                with suppress(ZImageError):  # an engine that fails again refuses to run
                    for _ in engine.refit(None):
                        pass
            raise

    def pin_bindings(self, pin: bool) -> None:
        """Call `Engine.pin_bindings` of every engine."""
        for engine in self.engines.values():
            engine.pin_bindings(pin)

    def save_kernels(self) -> None:
        """Call `Engine.save_kernels` of every engine."""
        for engine in self.engines.values():
            engine.save_kernels()


def check_bindings(graph: Graph, bindings: Bindings) -> None:
    """Assert that names, dtypes and layout of the bindings are those of the graph."""
    for spec in (*graph.inputs, *graph.outputs):
        array = bindings[spec.name]
        assert array.dtype == spec.dtype, f"{spec.name}: {array.dtype}, the graph has {spec.dtype}"
        assert array.flags.c_contiguous, f"{spec.name} is not contiguous"
