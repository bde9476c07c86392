"""Export of a graph module to an ONNX file: tracing without weights, then streaming weights from the checkpoint.

Modules are on the meta device during tracing, and the optimiser sees no values of weights. The graph therefore depends
on configs alone, and tracing a model with 6 B parameters takes about 1 GB of memory.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch.export import Dim

from engine.errors import BuildError
from engine.plan.manifest import RefitWeight, padded
from export.checkpoint.weights import Joined, Scalar, Transposed, Weight, exponent, joined_name, load_as, separate_names
from export.graphs.fused_norm import FUSED_GROUP_NORM, to_onnx
from export.graphs.graph_module import GraphModule

OPSET = 20  # the latest that every TensorRT 10.x parser supports completely
FUSED_NORM_OPSET = 21  # the first with a GroupNormalization that scales channels; TensorRT parses it from 10.9 on

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dynamic dimension.

    Attributes:
        example: size in the traced example, different for every dimension.
        symbol: dimension for torch.export.
    """

    example: int
    symbol: Any


_ROWS, _COLUMNS, _PROMPT_LENGTH = 33, 35, 64  # tokens; odd rows and columns, whose product is not a multiple of 32

_ROWS_DIM, _COLUMNS_DIM = Dim("rows", min=4, max=4096), Dim("columns", min=4, max=4096)

DIMENSIONS = {
    "batch": Dimension(2, Dim("batch", min=1, max=1024)),
    "prompt_length": Dimension(_PROMPT_LENGTH, Dim.DYNAMIC),
    "sequence": Dimension(padded(_ROWS * _COLUMNS) + _PROMPT_LENGTH, Dim.DYNAMIC),
    "latent_height": Dimension(2 * _ROWS, 2 * _ROWS_DIM),
    "latent_width": Dimension(2 * _COLUMNS, 2 * _COLUMNS_DIM),
}


def trace(module: GraphModule) -> ir.Model:
    """Trace a module, whose parameters may be on the meta device. The weights of the result have no values."""
    device = next((parameter.device for parameter in module.parameters()), None)
    side = 2 * module.vae_scale  # pixels of a token along an axis
    dimensions = DIMENSIONS | {
        "height": Dimension(side * _ROWS, side * _ROWS_DIM),
        "width": Dimension(side * _COLUMNS, side * _COLUMNS_DIM),
    }
    example = tuple(
        torch.empty(
            [d if isinstance(d, int) else dimensions[d].example for d in spec.shape],
            dtype=getattr(torch, spec.dtype),
            device=device,
        )
        for spec in module.inputs
    )
    dynamic = tuple(
        {axis: dimensions[d].symbol for axis, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in module.inputs
    )
    exported = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
    has_fused_norm = any(node.target is FUSED_GROUP_NORM for node in exported.graph.nodes)
    program = torch.onnx.export(
        exported,
        dynamo=True,
        optimize=False,
        opset_version=FUSED_NORM_OPSET if has_fused_norm else OPSET,
        custom_translation_table={FUSED_GROUP_NORM: to_onnx},
        verbose=False,
    )
    assert program is not None
    model = program.model
    _hide_weights(model, module)
    _optimize(model)
    _name_tensors(model, module)
    return model


def attach_weights(model: ir.Model, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Attach a lazy tensor to every weight, which is read and cast when it is written, one at a time.

    Weights that the graph joins or transposes before a product become one weight.

    Returns:
        The weights by their names in the file.
    """
    graph = model.graph
    attached = {v: weights[name] for name, v in graph.initializers.items() if v.const_value is None and name}
    for node in list(graph):
        if node.op_type in ("Concat", "Transpose") and all(v in attached for v in node.inputs):
            _fold(node, attached)
    for value, weight in attached.items():
        if value.const_value is None:
            value.const_value = _lazy(value, weight)
    return {value.name or "": weight for value, weight in attached.items()}


def write(model: ir.Model, path: Path, advance: Advance | None = None, *, swappable: Collection[str] = ()) -> None:
    """Write `path` with the graph's constants, and the weights as external data beside it.

    Args:
        advance: called after each written tensor.
        swappable: names of weights to write to `<path>.swappable`; the others go to `<path>.data`.
    """

    def progress(_tensor: Any, _info: Any) -> None:
        if advance is not None:
            advance()

    weights = _weights(model)
    for suffix, names in (("swappable", swappable), ("data", [n for n in weights if n not in swappable])):
        values = [weights[name] for name in names]
        tensors = [value.const_value for value in values if value.const_value is not None]
        if tensors:
            data = ir.external_data.convert_tensors_to_external(
                tensors, path.parent, f"{path.name}.{suffix}", callback=progress
            )
            for value, tensor in zip(values, data, strict=True):
                value.const_value = tensor
    ir.save(model, path)


def refittable(model: ir.Model, weights: Mapping[str, Weight]) -> tuple[RefitWeight, ...]:
    """Return the manifest entries of swappable weights, with their offsets in the written external data.

    Args:
        model: graph after `write`.
        weights: swappable weights, of those that `attach_weights` returned.
    """
    found = []
    for name, weight in weights.items():
        stored = model.graph.initializers[name].const_value
        assert isinstance(stored, ir.ExternalTensor)
        parts = () if isinstance(weight, Scalar) else separate_names(name)
        outputs = weight.shape[-1 if isinstance(weight, Transposed) else 0] if parts else 0
        assert not parts or outputs % len(parts) == 0, f"{name} joins layers of different sizes"
        found.append(
            RefitWeight(
                name=name,
                parts=parts,
                transposed=isinstance(weight, Transposed),
                exponent=exponent(weight),
                dtype=str(stored.dtype.numpy()),
                shape=weight.shape,
                offset=stored.offset or 0,
            )
        )
    return tuple(found)


def weight_count(model: ir.Model) -> int:
    """Return the number of tensors that `write` reports to `advance`."""
    return len(_weights(model))


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of the weights that `attach_weights` attached, before `write`."""
    return sum(value.const_value.nbytes for value in _weights(model).values() if value.const_value is not None)


def _weights(model: ir.Model) -> dict[str, ir.Value]:
    """Return the weights that `attach_weights` attached a tensor to, by name."""
    return {n: value for n, value in model.graph.initializers.items() if isinstance(value.const_value, ir.LazyTensor)}


def _fold(node: ir.Node, attached: dict[ir.Value, Weight]) -> None:
    """Replace a node whose inputs are all weights by one weight, and remove inputs that no other node reads."""
    graph, inputs = node.graph, [value for value in node.inputs if value is not None]
    assert isinstance(graph, ir.Graph)
    parts = tuple(attached[value] for value in inputs)
    if node.op_type == "Concat":
        assert node.attributes["axis"].as_int() == 0, "layers are joined by their outputs"
    weight = Joined(parts) if node.op_type == "Concat" else Transposed(parts[0])
    name = joined_name([value.name or "" for value in inputs])
    value = ir.Value(name=name, type=inputs[0].type, shape=ir.Shape(weight.shape))
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)
    for source in inputs:
        if not source.uses():
            del graph.initializers[source.name or ""]
            del attached[source]
    value.const_value = _lazy(value, weight)
    graph.register_initializer(value)
    attached[value] = weight


def _lazy(value: ir.Value, weight: Weight) -> ir.LazyTensor:
    name, dtype = value.name, value.dtype
    assert dtype is not None

    def load() -> ir.TensorProtocol:
        tensor = load_as(weight, ir.tensor_adapters.to_torch_dtype(dtype))
        return ir.tensor_adapters.TorchTensor(tensor.contiguous(), name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(weight.shape), name=name)


def _hide_weights(model: ir.Model, module: GraphModule) -> None:
    parameters = {name for name, _ in module.named_parameters()}
    for name, value in model.graph.initializers.items():
        if name in parameters:
            value.const_value = None


def _optimize(model: ir.Model) -> None:
    """Fold shape arithmetic and merge duplicates.

    onnxscript's `optimize` also runs a pattern rewriter that is quadratic in the number of nodes. On 30 layers it takes
    20 times as long as the folding, for fusions that TensorRT and ONNX Runtime make anyway (docs/findings.md).
    """
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # onnx_ir warns about every weight without a value
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
    """Give the graph's tensors and dynamic dimensions their names in the manifest."""
    for values, specs in ((model.graph.inputs, module.inputs), (model.graph.outputs, module.outputs)):
        if len(values) != len(specs):
            raise BuildError(f"traced {len(values)} tensors where the graph declares {[s.name for s in specs]}")
        for value, spec in zip(values, specs, strict=True):
            value.name = spec.name
            value.shape = ir.Shape(spec.shape)
