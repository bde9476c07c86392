"""Relative error of each graph of a plan directory against DiffSynth's modules on the same device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.array import Array
from engine.backends.base import Backend
from engine.backends.load import load_backend
from engine.options import RuntimeOptions
from engine.plan.directory import read
from engine.plan.manifest import Graph, GraphName, Manifest, Model
from export.checkpoint.files import open_checkpoint
from export.compile.parity import Reference, relative_l2, sample_inputs

# height and width in latents, prompt tokens, batch
SHAPES = ((16, 16, 20, 1), (18, 22, 40, 2))


def graph_errors(directory: Path, checkpoint: Path, device: str) -> dict[str, Any]:
    """Return the relative L2 of each graph against DiffSynth in FP32, the largest over SHAPES, and the largest of all.

    Args:
        directory: plan directory built from `checkpoint`.
        device: torch device that the reference runs on.
    """
    manifest = read(directory, verify=False)
    reference = Reference(open_checkpoint(str(checkpoint)), device)
    loaded = load_backend(directory, manifest, RuntimeOptions())
    try:
        errors: dict[str, float] = {}
        for name in manifest.graphs:
            forward = reference.forward(name)
            for height, width, tokens, batch in SHAPES:
                samples = 1 if name == "vae_decoder" else batch
                inputs = sample_inputs(name, reference.config, height=height, width=width, tokens=tokens, batch=samples)
                error = relative_l2(_run(loaded, manifest, name, inputs), forward(inputs))
                errors[name] = max(error, errors.get(name, 0.0)) if np.isfinite(error) else float("inf")
    finally:
        loaded.close()
    return {"relative_l2": errors, "worst": max(errors.values())}


def _run(loaded: Backend, manifest: Manifest, name: GraphName, inputs: Mapping[str, Array]) -> Array:
    """Return a graph's first output, computed by the engine and the memory that serve images."""
    memory, graph = loaded.memory, manifest.graphs[name]
    bindings = {key: memory.write(key, array) for key, array in inputs.items()}
    for output, shape in _output_shapes(graph, manifest.model, inputs).items():
        bindings[output] = memory.view(output, shape)
        memory.prepare_write(bindings[output])
    loaded.engines[name].enqueue(memory.stream, bindings)
    return memory.read(bindings[graph.outputs[0].name]).wait().copy()


def _output_shapes(graph: Graph, model: Model, inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    found = {d: size for spec in graph.inputs for d, size in zip(spec.shape, inputs[spec.name].shape, strict=True)}
    for side in ("height", "width"):
        if f"latent_{side}" in found:
            found[side] = found[f"latent_{side}"] * model.vae_scale
    return {spec.name: tuple(d if isinstance(d, int) else found[d] for d in spec.shape) for spec in graph.outputs}
