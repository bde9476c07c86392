"""A graph executed by TensorRT or TensorRT-RTX: contexts that keep their bindings, memory from the caller's arena.

The constructor allocates; `enqueue` sets what has changed and enqueues.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from engine.backends.base import Bindings, Engine
from engine.backends.cuda import Cuda
from engine.backends.memory import DeviceTensor
from engine.backends.tensorrt.cuda_graphs import Replay
from engine.backends.tensorrt.plan import Context, Plan
from engine.errors import PlanCorrupt
from engine.options import CudaGraphs
from engine.plan.lora import PreparedLora, own_value
from engine.plan.manifest import Graph, Range

Shapes = Mapping[str, Range]  # dynamic dimension -> its bounds
Key = tuple[tuple[int, tuple[int, ...]], ...]  # address and shape of each tensor

# Per profile: latents take turns, so a shape has two sets of bindings. More than one shape, since images of two sizes
# often come in turns. A context has one CUDA graph: TensorRT changes a context's inner state with its shapes, which
# spoils graphs captured before (its developer guide; TensorRT issue 3798).
CONTEXTS = 4


@dataclass(frozen=True, slots=True)
class StreamResources:
    """Where the engines of one stream run. Their contexts share the arena: they run one after the other."""

    cuda: Cuda
    stream: int
    arena: int  # address
    arena_bytes: int
    cuda_graphs: CudaGraphs


class TensorRtEngine(Engine):
    """One graph.

    Args:
        profiles: bounds of the named dimensions by the plan's profile index, the tightest first.
        directory: of the plans, where own weights are read from after a LoRA.
    """

    def __init__(
        self, site: StreamResources, plan: Plan, graph: Graph, profiles: Mapping[int, Shapes], directory: Path
    ) -> None:
        self._site, self._plan, self._graph, self._directory = site, plan, graph, directory
        self._profiles = _worth_contexts(graph, profiles)
        self._tensors = (*graph.inputs, *graph.outputs)
        assert all(plan.activation_bytes(index) <= site.arena_bytes for index in self._profiles)
        self._turns: dict[int, OrderedDict[object, _Bound]] = {
            index: OrderedDict((object(), self._create(index, specialized=False)) for _ in range(CONTEXTS))
            for index in self._profiles
        }
        self._kept: dict[Key, _Bound] = {}
        self._keep = False
        self._swapped: set[str] = set()
        self._broken = False

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == self._site.stream, "an engine's contexts and graphs belong to the stream that it was made for"
        if self._broken:
            raise PlanCorrupt(f"the weights of {self._graph.file} are in no known state; load the plans anew")
        tensors: dict[str, DeviceTensor] = {spec.name: bindings[spec.name] for spec in self._tensors}
        key = tuple((tensor.address, tensor.shape) for tensor in tensors.values())
        (self._kept.get(key) or self._bound(key, tensors)).enqueue(stream)

    def keep(self, keep: bool) -> None:
        self._keep = keep

    def refit(self, lora: PreparedLora | None) -> None:
        changed = {} if lora is None else lora.weights(self._graph, self._directory)
        own = {
            weight.name: own_value(self._graph, weight, self._directory)
            for weight in self._graph.refittable
            if weight.name in self._swapped and weight.name not in changed
        }
        if not changed and not own:
            return
        self._forget_graphs()
        self._swapped |= changed.keys()
        self._broken = True  # a refit that fails may have changed some weights
        self._plan.refit(changed | own, self._site.stream)
        self._broken = False
        self._swapped = set(changed)

    def close(self) -> None:
        """Gives back what the plan has on the device; what is running is waited for."""
        self._site.cuda.synchronize(self._site.stream)
        self._forget_graphs()
        self._turns.clear()
        self._kept.clear()
        self._plan.close()

    def _bound(self, key: Key, tensors: Mapping[str, DeviceTensor]) -> "_Bound":
        """The context that has these bindings, or that was used least recently and gets them."""
        profile = self._profile(tensors)
        if self._keep:
            bound = self._kept[key] = self._create(profile, specialized=True)
        else:
            turns = self._turns[profile]
            bound = turns.pop(key) if key in turns else turns.popitem(last=False)[1]
            turns[key] = bound
        bound.bind(tensors)
        return bound

    def _create(self, profile: int, *, specialized: bool) -> "_Bound":
        site = self._site
        arena = (site.arena, site.arena_bytes)
        context = self._plan.create_context(profile, arena, site.stream, specialized=specialized)
        return _Bound(context, self._graph, Replay(site.cuda, site.cuda_graphs, site.stream))

    def _forget_graphs(self) -> None:
        for bound in chain(self._kept.values(), *(turns.values() for turns in self._turns.values())):
            bound.replay.clear()

    def _profile(self, tensors: Mapping[str, DeviceTensor]) -> int:
        """The first profile that holds the shapes."""
        for index, bounds in self._profiles.items():
            if all(
                size == dimension if isinstance(dimension, int) else size in bounds[dimension]
                for spec in self._graph.inputs
                for size, dimension in zip(tensors[spec.name].shape, spec.shape, strict=True)
            ):
                return index
        raise AssertionError(f"no profile holds {tensors}: the manifest's check lets only what fits come here")


def _worth_contexts(graph: Graph, profiles: Mapping[int, Shapes]) -> dict[int, Shapes]:
    """The profiles of a graph without those that an earlier one holds."""
    names = {dimension for spec in graph.inputs for dimension in spec.shape if isinstance(dimension, str)}
    kept: dict[int, Shapes] = {}
    for index, bounds in profiles.items():
        if not any(
            all(bounds[name].min in other[name] and bounds[name].max in other[name] for name in names)
            for other in kept.values()
        ):
            kept[index] = bounds
    return kept


class _Bound:
    """A context with the shapes and addresses that it has: only what has changed is set."""

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
