"""Plans on the fake device: their graphs are functions of numpy, and wrong use raises `Misuse`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from fakes.cuda import PASS_SECONDS, POISON, FakeCuda, Misuse

from engine.backends.base import Backend
from engine.backends.cuda import failure
from engine.backends.tensorrt.load import load_plans
from engine.options import RuntimeOptions
from engine.plan.manifest import Graph, GraphName, Manifest, Range
from engine.plan.shapes import dimensions

Kernel = Callable[[dict[str, np.ndarray]], None]


class FakePlan:
    """An `engine.backends.tensorrt.plan.Plan` whose graph is a Python function over the device's bytes."""

    def __init__(
        self,
        cuda: FakeCuda,
        graph: Graph,
        profiles: Mapping[int, Mapping[str, Range]],
        kernel: Kernel,
        activation_bytes: int = 4096,
        weight_bytes: int = 1024,
    ) -> None:
        self.cuda, self.graph, self.profiles, self.kernel = cuda, graph, profiles, kernel
        self._activation_bytes = activation_bytes
        self._weights = cuda.allocate(weight_bytes)
        self.refitted: list[dict[str, np.ndarray]] = []
        self.contexts: list[FakeContext] = []
        self.fails_to_refit = False
        self.saves = 0  # of kernels
        self.closed = False

    def activation_bytes(self, profile: int) -> int:
        assert profile in self.profiles
        return self._activation_bytes

    def create_context(self, profile: int, arena: tuple[int, int], stream: int, *, specialized: bool) -> "FakeContext":
        if self.closed:
            raise Misuse("a context of a plan that was closed")
        if arena[1] < self._activation_bytes:
            raise Misuse(f"an arena of {arena[1]} bytes for a context that needs {self._activation_bytes}")
        self.cuda.bytes_at(*arena, device=True)
        context = FakeContext(self, profile, arena, stream, specialized)
        self.contexts.append(context)
        return context

    def refit(self, weights: Iterable[tuple[str, np.ndarray]], stream: int) -> Iterator[None]:
        """Take a portion for each weight, and record all of them once they are taken."""
        if self.fails_to_refit:
            raise failure("refit", "cudaErrorInvalidValue")
        copied = {}
        for name, array in weights:
            copied[name] = array.copy()
            yield
        self.cuda.enqueue(stream, lambda: self.refitted.append(copied))

    def save_kernels(self) -> None:
        self.saves += 1

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.cuda.free(self._weights)


class FakeContext:
    """`engine.backends.tensorrt.plan.Context`."""

    def __init__(self, plan: FakePlan, profile: int, arena: tuple[int, int], stream: int, specialized: bool) -> None:
        self._plan, self.profile, self._arena, self._stream = plan, profile, arena, stream
        self.specialized = specialized
        self.set: Counter[str] = Counter()  # calls by kind
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._version = 0  # of the inner state, which changes with shapes

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.set["shape"] += 1
        self._version += 1
        [spec] = [spec for spec in self._plan.graph.inputs if spec.name == name]
        bounds = self._plan.profiles[self.profile]
        for size, dimension in zip(shape, spec.shape, strict=True):
            if size != dimension if isinstance(dimension, int) else size not in bounds[dimension]:
                raise Misuse(f"{name} of {shape} is outside profile {self.profile}")
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        self.set["address"] += 1
        if address % 256:
            raise Misuse(f"{name} at {address:#x} is not aligned")
        self._plan.cuda.bytes_at(address, 1, device=True)
        self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        cuda, plan = self._plan.cuda, self._plan
        cuda._begin("context.enqueue", waits=False)
        self._require_alive()
        if stream != self._stream:
            raise Misuse("a stream of another engine")
        windows = dict(self._windows())
        version = self._version

        def valid() -> None:
            self._require_alive()
            if self._version != version:
                raise Misuse("a graph is replayed whose context has had other shapes since")

        def run() -> None:
            self._require_alive()
            cuda.bytes_at(*self._arena, device=True)[:] = POISON  # data that another graph left there is lost
            plan.kernel({name: self._array(*window) for name, window in windows.items()})

        cuda.enqueue(stream, run, seconds=PASS_SECONDS, valid=valid)

    def _require_alive(self) -> None:
        if self._plan.closed:
            raise Misuse("a context runs whose plan was closed")

    def _windows(self) -> Iterator[tuple[str, tuple[int, tuple[int, ...], str]]]:
        dimensions: dict[str, int] = {}
        for spec in self._plan.graph.inputs:
            if spec.name not in self._shapes:
                raise Misuse(f"the shape of {spec.name} was never set")
            dimensions |= {n: s for n, s in zip(spec.shape, self._shapes[spec.name], strict=True) if isinstance(n, str)}
        dimensions |= {
            name: 8 * dimensions[f"latent_{name}"] for name in ("height", "width") if f"latent_{name}" in dimensions
        }
        for spec in (*self._plan.graph.inputs, *self._plan.graph.outputs):
            if spec.name not in self._addresses:
                raise Misuse(f"the address of {spec.name} was never set")
            shape = tuple(d if isinstance(d, int) else dimensions[d] for d in spec.shape)
            yield spec.name, (self._addresses[spec.name], shape, spec.dtype)

    def _array(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._plan.cuda.bytes_at(address, size, device=True).view(dtype).reshape(shape)


def load_fakes(
    cuda: FakeCuda, kernels: Mapping[GraphName, Kernel], folder: Path, manifest: Manifest, options: RuntimeOptions
) -> Backend:
    """Load what `engine.backends.load` loads for a GPU, over fake plans."""

    def open_plan(name: GraphName) -> FakePlan:
        profiles = {i: dimensions(name, profile, manifest.model) for i, profile in enumerate(manifest.profiles)}
        return FakePlan(cuda, manifest.graphs[name], profiles, kernels[name])

    return load_plans(cuda, open_plan, folder, manifest, options)
