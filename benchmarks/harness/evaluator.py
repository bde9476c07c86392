"""An evaluator for ONNX graphs that rounds every result to its type and overflows as a GPU does.

ONNX Runtime on a CPU cannot test FP16: it computes FP16 graphs in FP32 and drops the casts between nodes, so it misses
overflows that turn an image black on a GPU. This module extends onnx's reference evaluator with fast products and
convolutions. The evaluator is an `Engine`, so a pipeline can generate with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from engine.backends.base import Bindings, Engine
from export.compile.parity import widen

Array = np.ndarray[Any, Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


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
        self._float64 = float64
        self.inputs, self.outputs = ([str(v.name) for v in side] for side in (model.graph.inputs, model.graph.outputs))
        self._evaluator = ReferenceEvaluator(
            ir.to_proto(ir.external_data.load_to_model(model)), new_ops=[MatMul, Conv, Resize, GroupNormalization]
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


def widened(array: Array) -> torch.Tensor:
    """Convert to FP32; float64 stays. torch does in seconds the conversion that takes numpy minutes."""
    writable = np.require(array, requirements=["C", "W"])
    if array.dtype == BFLOAT16:
        return torch.from_numpy(writable.view(np.int16)).view(torch.bfloat16).float()
    tensor = torch.from_numpy(writable)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rounded(tensor: torch.Tensor, dtype: np.dtype[Any]) -> Array:
    """Round to a narrower type; values beyond its range become Inf."""
    array: Array
    if dtype == BFLOAT16:
        array = tensor.bfloat16().view(torch.int16).numpy().view(BFLOAT16)
    else:
        array = tensor.to(getattr(torch, dtype.name)).numpy()
    return array


class MatMul(OpRun):  # named as the ONNX operator
    """Matrix product that accumulates in FP32, as tensor cores do, and rounds once."""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return (rounded(widened(a) @ widened(b), a.dtype),)


class Conv(OpRun):
    """Convolution that accumulates in FP32 and rounds once."""

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array]:
        assert attributes["group"] in (None, 1) and set(attributes["dilations"] or [1]) == {1}
        top, left, bottom, right = attributes["pads"] or [0] * 4
        padded = F.pad(widened(x), (left, right, top, bottom))
        strides = tuple(attributes["strides"] or (1, 1))
        y = F.conv2d(padded, widened(weight), None if bias is None else widened(bias), strides)
        return (rounded(y, x.dtype),)


class GroupNormalization(OpRun):
    """GroupNorm that computes in FP32 and rounds once, as TensorRT's normalisation does by default."""

    def _run(self, x: Array, weight: Array, bias: Array, **attributes: Any) -> tuple[Array]:
        scale, shift = widened(weight), widened(bias)
        y = F.group_norm(widened(x), attributes["num_groups"], scale, shift, attributes["epsilon"])
        return (rounded(y, x.dtype),)


class Resize(OpRun):
    """Nearest-neighbour upsampling by 2, the only resize in the graphs."""

    def _run(self, x: Array, _roi: Array | None, scales: Array, *_: Any, **attributes: Any) -> tuple[Array]:
        assert attributes["mode"] == "nearest" and scales.tolist() == [1, 1, 2, 2]
        return (x.repeat(2, axis=2).repeat(2, axis=3),)
