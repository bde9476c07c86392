"""A graph module becomes an ONNX file: traced without weights, weights streamed in from the checkpoint.

Modules stay on the meta device while they are traced and the optimiser sees no weight's value, so the graph depends
on configs alone and a 6 B-parameter model is traced in about 1 GB.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch.export import Dim

from engine.errors import BuildError, CheckpointError
from engine.manifest import padded
from export.checkpoint import Weight
from export.graph_module import GraphModule

OPSET = 20  # the last that every TensorRT 10.x parser reads whole
EXTERNAL_ABOVE = 256  # bytes; smaller constants stay in the .onnx

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dynamic dimension: an example that no other shares, and how torch.export is to see it."""

    example: int
    symbol: Any


_ROWS, _COLUMNS, _CAPTION = 33, 35, 64  # tokens; odd, and not a multiple of 32 in all

DIMENSIONS = {
    "batch": Dimension(2, Dim("batch", min=1, max=1024)),
    "caption": Dimension(_CAPTION, Dim.DYNAMIC),
    "sequence": Dimension(padded(_ROWS * _COLUMNS) + _CAPTION, Dim.DYNAMIC),
    "latent_height": Dimension(2 * _ROWS, 2 * Dim("rows", min=4, max=4096)),
    "latent_width": Dimension(2 * _COLUMNS, 2 * Dim("columns", min=4, max=4096)),
}


def trace(module: GraphModule) -> ir.Model:
    """The ONNX graph of a module whose parameters may live on the meta device; weights have names, no values."""
    device = next(module.parameters()).device
    example = tuple(
        torch.empty(
            [d if isinstance(d, int) else DIMENSIONS[d].example for d in spec.shape],
            dtype=getattr(torch, spec.dtype),
            device=device,
        )
        for spec in module.inputs
    )
    dynamic = tuple(
        {axis: DIMENSIONS[d].symbol for axis, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in module.inputs
    )
    exported = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
    program = torch.onnx.export(exported, dynamo=True, optimize=False, opset_version=OPSET, verbose=False)
    assert program is not None
    model = program.model
    _hide_weights(model, module)
    _optimize(model)
    _name_tensors(model, module)
    return model


def attach_weights(model: ir.Model, weights: Mapping[str, Weight]) -> None:
    """Gives every nameless value its tensor of the checkpoint, read and cast when it is written, one at a time."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = _lazy(name, value, weights[name])


def write(model: ir.Model, path: Path, advance: Advance | None = None) -> None:
    """Writes `path` and, beside it, its weights as external data `<path>.data`."""

    def progress(_tensor: Any, _info: Any) -> None:
        if advance is not None:
            advance()

    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=EXTERNAL_ABOVE, callback=progress)


def weight_count(model: ir.Model) -> int:
    """Tensors that `write` reports."""
    return sum(value.const_value.nbytes > EXTERNAL_ABOVE for value in model.graph.initializers.values())


def _lazy(name: str, value: ir.Value, weight: Weight) -> ir.LazyTensor:
    dtype = value.dtype

    def load() -> ir.TensorProtocol:
        stored = weight.load()
        tensor = stored.to(ir.tensor_adapters.to_torch_dtype(dtype))
        if not torch.isfinite(tensor).all():
            damaged = not torch.isfinite(stored).all()
            why = "holds NaN or Inf" if damaged else f"has values that {dtype.name} cannot hold; use --bf16"
            raise CheckpointError(f"{weight.key} in {weight.file} {why}")
        return ir.tensor_adapters.TorchTensor(tensor.contiguous(), name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(weight.shape), name=name)


def _hide_weights(model: ir.Model, module: GraphModule) -> None:
    parameters = {name for name, _ in module.named_parameters()}
    for name, value in model.graph.initializers.items():
        if name in parameters:
            value.const_value = None


def _optimize(model: ir.Model) -> None:
    """Folds shape arithmetic and merges duplicates.

    onnxscript's `optimize` also runs its pattern rewriter, which is quadratic in the nodes: on 30 layers it takes 20
    times as long as the folding, for fusions that TensorRT and ONNX Runtime make themselves (docs/findings.md).
    """
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about every weight without a value
    try:
        passes.InlinePass()(model)
        optimizer.fold_constants_ir(model)
        for step in (
            passes.RemoveUnusedNodesPass(),
            passes.RemoveUnusedFunctionsPass(),
            passes.RemoveUnusedOpsetsPass(),
            passes.IdentityEliminationPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.DeduplicateInitializersPass(),
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.ClearMetadataAndDocStringPass(),
        ):
            step(model)
    finally:
        logger.setLevel(level)


def _name_tensors(model: ir.Model, module: GraphModule) -> None:
    """One vocabulary: the graph's tensors and dynamic dimensions are called what the manifest calls them."""
    for values, specs in ((model.graph.inputs, module.inputs), (model.graph.outputs, module.outputs)):
        if len(values) != len(specs):
            raise BuildError(f"traced {len(values)} tensors where the graph declares {[s.name for s in specs]}")
        for value, spec in zip(values, specs, strict=True):
            value.name = spec.name
            value.shape = ir.Shape(spec.shape)
