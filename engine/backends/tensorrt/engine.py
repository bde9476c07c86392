"""A graph on TensorRT or TensorRT-RTX: execution contexts that keep their bindings, in the caller's arena.

`enqueue` sets only what has changed, and enqueues. A context is created when the first pass of its profile needs it,
until the profile has CONTEXTS of them, and for bindings that are pinned; later passes create nothing. All activations
are in the arena, which is allocated at the start, so a new context takes no device memory but for what TensorRT keeps
for each, which the VRAM plan's reserve covers. The pass that creates one waits for it: warm up sizes for which that
matters.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from engine.array import Array
from engine.backends.base import Bindings, Engine
from engine.backends.cuda import Cuda
from engine.backends.memory import DeviceTensor
from engine.backends.tensorrt.cuda_graphs import CAPTURED, PINNED_CAPTURED, Replay
from engine.backends.tensorrt.plan import Context, Plan
from engine.errors import PlanCorrupt
from engine.options import CudaGraphs
from engine.plan.lora import PreparedLora, base_weight
from engine.plan.manifest import Graph, Range
from engine.plan.shapes import covers

Shapes = Mapping[str, Range]  # dynamic dimension -> its bounds
BindingKey = tuple[tuple[int, tuple[int, ...]], ...]  # address and shape of each tensor

# Per profile; images of several sizes and prompt lengths often alternate. A context has one CUDA graph: a new shape
# changes the context's inner state, which invalidates graphs captured before (TensorRT's developer guide; TensorRT
# issue 3798).
CONTEXTS = 4


@dataclass(frozen=True, slots=True)
class StreamResources:
    """Resources shared by the engines of one stream. Their contexts run one after the other, so they share an arena."""

    cuda: Cuda
    stream: int
    arena: int  # address
    arena_bytes: int
    cuda_graphs: CudaGraphs


class TensorRtEngine(Engine):
    """One graph.

    Args:
        profiles: bounds of the named dimensions by the plan's profile index, the tightest profile first.
        directory: the plan directory, from which base weights are read after a LoRA.
    """

    def __init__(
        self, resources: StreamResources, plan: Plan, graph: Graph, profiles: Mapping[int, Shapes], directory: Path
    ) -> None:
        self._resources, self._plan, self._graph, self._directory = resources, plan, graph, directory
        self._profiles = _without_covered(graph, profiles)
        self._tensors = (*graph.inputs, *graph.outputs)
        assert all(plan.activation_bytes(index) <= resources.arena_bytes for index in self._profiles)
        self._recent: dict[int, OrderedDict[BindingKey, _BoundContext]] = {  # by profile, least recently used first
            index: OrderedDict() for index in self._profiles
        }
        self._pinned: dict[BindingKey, _BoundContext] = {}
        self._pin_new = False
        self._changed_weights: set[str] = set()
        self._is_broken = False

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == self._resources.stream, "an engine's contexts and graphs belong to the stream it was made for"
        if self._is_broken:
            raise PlanCorrupt(f"the weights of {self._graph.file} are in no known state; load the plans again")
        tensors: dict[str, DeviceTensor] = {spec.name: bindings[spec.name] for spec in self._tensors}
        key = tuple((tensor.address, tensor.shape) for tensor in tensors.values())
        (self._pinned.get(key) or self._bind(key, tensors)).enqueue(stream)

    def pin_bindings(self, pin: bool) -> None:
        self._pin_new = pin

    def refit(self, lora: PreparedLora | None) -> Iterator[None]:
        changed = set() if lora is None else lora.changes(self._graph)
        restored = self._changed_weights - changed
        if not changed and not restored:
            return
        self._drop_cuda_graphs()
        self._changed_weights |= changed
        self._is_broken = True  # a refit that fails or is abandoned may have changed some weights
        weights = chain(self._base_weights(restored), lora.weights(self._graph, self._directory) if lora else ())
        yield from self._plan.refit(weights, self._resources.stream)
        self._is_broken = False
        self._changed_weights = changed

    def save_kernels(self) -> None:
        self._plan.save_kernels()

    def close(self) -> None:
        """Wait for what is running, and free the plan's memory on the device."""
        self._resources.cuda.synchronize(self._resources.stream)
        self._drop_cuda_graphs()
        self._recent.clear()
        self._pinned.clear()
        self._plan.close()

    def _bind(self, key: BindingKey, tensors: Mapping[str, DeviceTensor]) -> "_BoundContext":
        """Return the context that has these bindings, or give them to a new or the least recently used one."""
        profile = self._profile(tensors)
        if self._pin_new:
            bound = self._create(profile, pinned=True)
            bound.bind(tensors)
            self._pinned[key] = bound
            return bound
        recent = self._recent[profile]
        if key in recent:
            bound = recent.pop(key)
        elif len(recent) < CONTEXTS:
            bound = self._create(profile, pinned=False)
        else:
            bound = recent.popitem(last=False)[1]
        recent[key] = bound
        bound.bind(tensors)
        return bound

    def _create(self, profile: int, *, pinned: bool) -> "_BoundContext":
        resources = self._resources
        arena = (resources.arena, resources.arena_bytes)
        context = self._plan.create_context(profile, arena, resources.stream, specialized=pinned)
        captured = PINNED_CAPTURED if pinned else CAPTURED
        replay = Replay(resources.cuda, resources.cuda_graphs, resources.stream, captured)
        return _BoundContext(context, self._graph, replay)

    def _base_weights(self, names: Collection[str]) -> Iterator[tuple[str, Array]]:
        for weight in self._graph.refittable:
            if weight.name in names:
                yield weight.name, base_weight(self._graph, weight, self._directory)

    def _drop_cuda_graphs(self) -> None:
        for bound in chain(self._pinned.values(), *(recent.values() for recent in self._recent.values())):
            bound.replay.clear()

    def _profile(self, tensors: Mapping[str, DeviceTensor]) -> int:
        """Return the first profile that covers the shapes."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for index, bounds in self._profiles.items():
            if covers(self._graph, bounds, shapes):
                return index
        raise AssertionError(f"no profile covers {tensors}; requests are checked against the manifest before this")


def _without_covered(graph: Graph, profiles: Mapping[int, Shapes]) -> dict[int, Shapes]:
    """Return the profiles without those that an earlier one covers in this graph's dimensions."""
    names = {dimension for spec in graph.inputs for dimension in spec.shape if isinstance(dimension, str)}
    kept: dict[int, Shapes] = {}
    for index, bounds in profiles.items():
        if not any(
            all(bounds[name].min in other[name] and bounds[name].max in other[name] for name in names)
            for other in kept.values()
        ):
            kept[index] = bounds
    return kept


class _BoundContext:
    """A context and the bindings that it has; only what differs is set again."""

    def __init__(self, context: Context, graph: Graph, replay: Replay) -> None:
        self.replay = replay
        self._context = context
        self._inputs = {spec.name for spec in graph.inputs}
        self._set: dict[str, DeviceTensor] = {}

    def bind(self, tensors: Mapping[str, DeviceTensor]) -> None:
        if tensors == self._set:
            return
        self.replay.clear()
        for name, tensor in tensors.items():
            known = self._set.get(name)
            if name in self._inputs and (known is None or known.shape != tensor.shape):
                self._context.set_shape(name, tensor.shape)
            if known is None or known.address != tensor.address:
                self._context.set_address(name, tensor.address)
            self._set[name] = tensor

    def enqueue(self, stream: int) -> None:
        self.replay.run(lambda: self._context.enqueue(stream))
