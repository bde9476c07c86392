"""Weights on their way into the ONNX file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from engine.errors import CheckpointError
from export.compile import onnx_export


@dataclass(frozen=True, slots=True)
class Held:
    """A weight that is in memory."""

    tensor: torch.Tensor
    source: str = "layers.0.w in a.safetensors"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def load(self) -> torch.Tensor:
        return self.tensor


def graph_with(dtype: ir.DataType) -> ir.Model:
    """An initializer `w` of 256 elements that has a name and no value."""
    weight = ir.Value(name="w", type=ir.TensorType(dtype), shape=ir.Shape([256]))
    node = ir.node(
        "Identity", [weight], outputs=[ir.Value(name="out", type=ir.TensorType(dtype), shape=ir.Shape([256]))]
    )
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(("dtype", "value"), [("FLOAT16", 65504.0), ("BFLOAT16", 1e30), ("FLOAT", 1e30)])
def test_weights_are_cast_as_they_are_written(tmp_path: Path, dtype: str, value: float) -> None:
    model = graph_with(ir.DataType[dtype])
    onnx_export.attach_weights(model, {"w": Held(torch.full((256,), value))})
    onnx_export.write(model, tmp_path / "g.onnx")
    stored = ir.load(tmp_path / "g.onnx").graph.initializers["w"].const_value
    assert stored is not None
    assert (tmp_path / "g.onnx.data").stat().st_size >= stored.nbytes
    assert np.allclose(stored.numpy().astype(np.float64), value, rtol=1e-2)


@pytest.mark.parametrize(
    ("dtype", "value", "why"),
    [
        ("FLOAT16", 7e4, "has values that float16 cannot hold"),
        ("FLOAT16", -1e9, "has values that float16 cannot hold"),
        ("FLOAT", float("nan"), "holds NaN or Inf"),
        ("FLOAT16", float("inf"), "holds NaN or Inf"),
    ],
)
def test_weight_beyond_its_format_is_named(tmp_path: Path, dtype: str, value: float, why: str) -> None:
    model = graph_with(ir.DataType[dtype])
    onnx_export.attach_weights(model, {"w": Held(torch.full((256,), value))})
    with pytest.raises(CheckpointError, match=f"layers.0.w in a.safetensors {why}"):
        onnx_export.write(model, tmp_path / "g.onnx")


def test_joined_and_transposed_weights_are_written_as_one(tmp_path: Path) -> None:
    """x @ [wq; wk]^T, of two weights that have no values when the graph is made."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape(["rows", 300]))
    halves = [
        ir.Value(name=f"block.{name}.weight", type=float32, shape=ir.Shape([rows, 300]))
        for name, rows in (("to_q", 3), ("to_k", 2))
    ]
    joined = ir.node("Concat", halves, {"axis": 0})
    transposed = ir.node("Transpose", joined.outputs, {"perm": [1, 0]})
    product = ir.node("MatMul", [x, transposed.outputs[0]])
    product.outputs[0].name, product.outputs[0].type = "y", float32
    graph = ir.Graph(
        [x], product.outputs, nodes=[joined, transposed, product], initializers=halves, opset_imports={"": 20}, name="g"
    )
    tensors = {value.name or "": torch.randn(tuple(value.shape or ())) for value in halves}
    model = ir.Model(graph, ir_version=10)
    attached = onnx_export.attach_weights(model, {name: Held(tensor) for name, tensor in tensors.items()})
    onnx_export.write(model, tmp_path / "g.onnx")
    written = ir.load(tmp_path / "g.onnx").graph
    assert [node.op_type for node in written] == ["MatMul"]
    assert list(attached) == list(written.initializers) == ["block.to_q+to_k.weight"]
    [weight] = written.initializers.values()
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), torch.cat(list(tensors.values())).T.numpy())
