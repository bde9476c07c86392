"""Runs of single graphs by the engines and the memory that serve images."""

from collections.abc import Mapping

from engine.array import Array
from engine.backends.base import Backend
from engine.plan.manifest import Graph, GraphName, Manifest, Model

WRONG = 0.1  # relative L2 above which plans compute another function; FP16 stays below 1e-2, silent zeros give 1


def run_graph(loaded: Backend, manifest: Manifest, name: GraphName, inputs: Mapping[str, Array]) -> Array:
    """Return the first output of a graph."""
    memory, graph = loaded.memory, manifest.graphs[name]
    bindings = {key: memory.write(key, array) for key, array in inputs.items()}
    for spec, shape in zip(graph.outputs, _output_shapes(graph, manifest.model, inputs), strict=True):
        bindings[spec.name] = memory.view(spec.name, shape)
        memory.prepare_write(bindings[spec.name])
    loaded.engines[name].enqueue(memory.stream, bindings)
    return memory.read(bindings[graph.outputs[0].name]).wait().copy()


def _output_shapes(graph: Graph, model: Model, inputs: Mapping[str, Array]) -> list[tuple[int, ...]]:
    found = {d: size for spec in graph.inputs for d, size in zip(spec.shape, inputs[spec.name].shape, strict=True)}
    for side in ("height", "width"):
        if f"latent_{side}" in found:
            found[side] = found[f"latent_{side}"] * model.vae_scale
    return [tuple(d if isinstance(d, int) else found[d] for d in spec.shape) for spec in graph.outputs]
