"""The evaluator that judges FP16: it overflows where a GPU does, and where ONNX Runtime on a CPU does not."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from benchmarks.harness.evaluator import StrictEvaluator
from benchmarks.harness.evaluator_ops import FusedAttention
from benchmarks.harness.evaluator_ops import product as product_of

TYPES = {"FLOAT16": 2.0**-11, "BFLOAT16": 2.0**-8, "FLOAT": 2.0**-24}


def product(folder: Path, dtype: ir.DataType, weight: float, columns: int = 128) -> Path:
    """x [B, columns] float32 -> cast -> times a constant matrix -> cast back to float32."""
    initializer = ir.Value(name="w", const_value=ir.tensor(np.full((columns, 2), weight, np.float32), name="w"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", columns]))
    cast = ir.node("Cast", [x], {"to": int(dtype)})
    narrow = ir.node("Cast", [initializer], {"to": int(dtype)})
    matmul = ir.node("MatMul", [cast.outputs[0], narrow.outputs[0]])
    wide = ir.node("Cast", matmul.outputs, {"to": int(ir.DataType.FLOAT)})
    wide.outputs[0].name, wide.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph(
        [x], wide.outputs, nodes=[cast, narrow, matmul, wide], initializers=[initializer], opset_imports={"": 20}
    )
    ir.save(ir.Model(graph, ir_version=10), folder / "product.onnx")
    return folder / "product.onnx"


def test_evaluator_overflows_where_onnx_runtime_does_not(tmp_path: Path) -> None:
    path, x = product(tmp_path, ir.DataType.FLOAT16, 10.0), {"x": np.full((1, 128), 100, np.float32)}  # 1.28e5
    assert np.isposinf(StrictEvaluator(path).run(x)[0]).all()
    assert np.isfinite(StrictEvaluator(path, float64=True).run(x)[0]).all()
    lenient = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, x)[0]
    assert np.isfinite(lenient).all(), "ONNX Runtime rounds FP16 now: this evaluator may have had its day"


@pytest.mark.parametrize("name", TYPES)
def test_results_are_rounded_to_their_type(tmp_path: Path, name: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    path = product(tmp_path, ir.DataType[name], 0.5)
    exact = StrictEvaluator(path, float64=True).run({"x": x})[0]
    error = np.abs(StrictEvaluator(path).run({"x": x})[0] - exact).max() / np.abs(exact).max()
    assert exact.dtype == np.float64
    assert TYPES[name] / 100 < error < 8 * TYPES[name]


def test_partial_sums_overflow_in_fp16_where_the_result_does_not() -> None:
    """The first half of the terms adds up to 128,000, the second half takes it back."""
    a = torch.cat([torch.full((1, 128), 100.0), torch.full((1, 128), -100.0)], dim=1)
    b = torch.full((256, 2), 10.0)
    assert product_of(a, b, fp16_sums=False).eq(0).all()
    assert not product_of(a, b, fp16_sums=True).isfinite().any()


def test_attention_in_fp16_overflows_where_undivided_values_do() -> None:
    """256 equal keys whose values are 300 add up to 76,800; the mean is 300."""
    zeros, values = np.zeros((1, 1, 256, 32), np.float16), np.full((1, 1, 256, 32), 300, np.float16)
    for is_cast, expected in ((1, 300.0), (0, np.inf)):
        attention = FusedAttention.__new__(FusedAttention)
        [got] = attention._run(zeros, zeros.swapaxes(2, 3), values, is_cast=is_cast)
        assert (got == expected).all()
