"""The evaluator that judges FP16: it overflows where a GPU does, and where ONNX Runtime on a CPU does not."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from benchmarks.harness.evaluator import StrictEvaluator

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
