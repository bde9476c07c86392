"""An evaluator for ONNX graphs that rounds and sums as a GPU does, and overflows where it does.

ONNX Runtime on a CPU cannot test FP16: it computes FP16 graphs in FP32 and drops the casts between nodes, so it misses
overflows that turn an image black on a GPU. This module extends onnx's reference evaluator with the operators of
`evaluator_ops`. The evaluator is an `Engine`, so a pipeline can generate with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from benchmarks.harness.evaluator_ops import DOMAIN, Conv, FusedAttention, GroupNormalization, MatMul, Resize
from engine.backends.base import Bindings, Engine
from export.compile.parity import widen

Array = np.ndarray[Any, Any]


class StrictEvaluator(Engine):
    """An ONNX graph in memory.

    Args:
        float64: compute in float64 regardless of the graph's types; weights keep their values.

    Attributes:
        inputs, outputs: names of the graph's tensors, in order.
    """

    def __init__(self, path: Path, *, float64: bool = False) -> None:
        model = ir.load(path)
        if float64:
            widen(model, ir.DataType.DOUBLE)
        else:
            fuse_attention(model)
        self._float64 = float64
        self.inputs, self.outputs = ([str(v.name) for v in side] for side in (model.graph.inputs, model.graph.outputs))
        self._evaluator = ReferenceEvaluator(
            ir.to_proto(ir.external_data.load_to_model(model)),
            new_ops=[MatMul, FusedAttention, Conv, Resize, GroupNormalization],
        )

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Return the graph's outputs, in order."""
        with np.errstate(over="ignore", invalid="ignore"):
            return list(self._evaluator.run(None, self._feeds(inputs)))

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        """Run the graph over the caller's arrays and write its outputs to them."""
        assert stream == 0, "a CPU has no streams"
        for name, output in zip(self.outputs, self.run({k: bindings[k] for k in self.inputs}), strict=True):
            bindings[name][:] = output

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not self._float64:
            return dict(inputs)
        return {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in inputs.items()}


def fuse_attention(model: ir.Model) -> None:
    """Replace scores, their softmax and its product with values by one operator, as TensorRT does.

    Scores may have a mask added. Casts of operands to FP32, and of results back, mean that products are summed in FP32.
    """
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        scored, mask = _uncast(softmax.inputs[0]), None
        if (added := _producer(scored, "Add")) is not None:
            scored, mask = _uncast(added.inputs[0]), added.inputs[1]
        first, second = _producer(scored, "MatMul"), _only_user(softmax.outputs[0])
        if first is None or second.op_type != "MatMul":
            continue
        query, key, value = (_uncast(v) for v in (*first.inputs, second.inputs[1]))
        result = second.outputs[0]
        is_cast = query is not first.inputs[0]
        if is_cast:
            result = _only_user(result).outputs[0]  # the cast back
        inputs = [query, key, value, *([] if mask is None else [mask])]
        attention = ir.node("FusedAttention", inputs, {"is_cast": int(is_cast)}, domain=DOMAIN)
        model.graph.insert_before(second, attention)
        result.replace_all_uses_with(attention.outputs[0])
        attention.outputs[0].name = f"{result.name}.attention"
    RemoveUnusedNodesPass()(model)
    model.opset_imports[DOMAIN] = 1


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _uncast(value: ir.Value | None) -> ir.Value | None:
    cast = _producer(value, "Cast")
    return value if cast is None else cast.inputs[0]


def _only_user(value: ir.Value) -> ir.Node:
    """Return the node that uses a value, or the one after a cast of it to FP32."""
    [node] = value.consumers()
    if node.op_type == "Cast" and [user.op_type for user in node.outputs[0].consumers()] == ["MatMul"]:
        [node] = node.outputs[0].consumers()
    return node
