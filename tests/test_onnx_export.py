"""Weights on their way into the ONNX file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from engine.errors import CheckpointError
from export import onnx_export
from export.checkpoint import Weight


@dataclass(frozen=True, slots=True)
class Constant(Weight):
    """A tensor of one value."""

    value: float = 0.0

    def load(self) -> torch.Tensor:
        return torch.full(self.shape, self.value)


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
    onnx_export.attach_weights(model, {"w": Constant(Path("a.safetensors"), "w", (256,), value=value)})
    onnx_export.write(model, tmp_path / "g.onnx")
    stored = ir.load(tmp_path / "g.onnx").graph.initializers["w"].const_value
    assert stored is not None
    assert (tmp_path / "g.onnx.data").stat().st_size >= stored.nbytes
    assert np.allclose(stored.numpy().astype(np.float64), value, rtol=1e-2)


@pytest.mark.parametrize(
    ("dtype", "value", "why"),
    [
        ("FLOAT16", 7e4, "has values that FLOAT16 cannot hold; use --bf16"),
        ("FLOAT16", -1e9, "has values that FLOAT16 cannot hold; use --bf16"),
        ("FLOAT", float("nan"), "holds NaN or Inf"),
        ("FLOAT16", float("inf"), "holds NaN or Inf"),
    ],
)
def test_a_weight_that_the_format_cannot_hold_is_named(tmp_path: Path, dtype: str, value: float, why: str) -> None:
    model = graph_with(ir.DataType[dtype])
    onnx_export.attach_weights(model, {"w": Constant(Path("a.safetensors"), "layers.0.w", (256,), value=value)})
    with pytest.raises(CheckpointError, match=f"layers.0.w in a.safetensors {why}"):
        onnx_export.write(model, tmp_path / "g.onnx")
