"""Products, attention and convolutions of `StrictEvaluator`, with the sums of an NVIDIA GPU.

Operands of FP32 and BF16 are summed in FP32, as is everything between two casts. Operands of FP16 are summed in FP16:
a tensor core adds `TERMS` products to the sum, then rounds it to the nearest FP16 number (Fasi et al., Numerical
behavior of NVIDIA tensor cores, doi:10.7717/peerj-cs.330, for A100; arXiv:2510.15884 finds the same for RTX 3060).

Attention is the kernel that TensorRT-RTX 1.7.1 puts into its plans (fmha_v2 of TensorRT-LLM, published there as
fused_multihead_flash_attention_kernel_noloop_tiled.h): the softmax in FP32, its exponentials rounded, values summed,
then divided. In FP16, these sums of up to one value per key can overflow. A row's maximum is taken as known.
"""

from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference.op_run import OpRun

from export.precision.bounds import TERMS

Array = np.ndarray[Any, Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ROWS = 64  # rows that are summed at a time in FP16, so that they stay in the processor's cache
DOMAIN = "zimage_trt.benchmarks"


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


def product(a: torch.Tensor, b: torch.Tensor, *, fp16_sums: bool) -> torch.Tensor:
    """Return a @ b of FP32 tensors, [..., M, K] and [..., K, N] or [K, N], summed in FP32 or in FP16."""
    if not fp16_sums:
        return a @ b
    if a.dim() > 2 and b.dim() == 2:
        rows: torch.Tensor = product(a.flatten(0, -2), b, fp16_sums=True).unflatten(0, a.shape[:-1])
        return rows
    if a.dim() > 2:
        parts = zip(a.flatten(0, -3), b.flatten(0, -3), strict=True)
        stacked: torch.Tensor = torch.stack([product(*pair, fp16_sums=True) for pair in parts])
        batches: torch.Tensor = stacked.unflatten(0, a.shape[:-2])
        return batches
    return torch.cat([_summed_in_fp16(some, b) for some in a.split(ROWS)])


def _summed_in_fp16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total, half = torch.zeros(len(a), b.shape[1]), torch.empty(len(a), b.shape[1], dtype=torch.float16)
    for left, right in zip(a.split(TERMS, dim=1), b.split(TERMS), strict=True):
        half.copy_(total.addmm_(left, right))
        total.copy_(half)
    return total


class MatMul(OpRun):  # named as the ONNX operator
    """Matrix product."""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        summed = product(widened(a), widened(b), fp16_sums=a.dtype == np.float16)
        return (rounded(summed, a.dtype),)


class FusedAttention(OpRun):
    """Fused attention.

    Attributes:
        largest: largest magnitudes of scores and of undivided sums in the last run.
    """

    op_domain = DOMAIN
    largest = (0.0, 0.0)

    def _run(self, query: Array, key: Array, value: Array, mask: Array | None = None, is_cast: int = 0) -> tuple[Array]:
        fp16_sums = query.dtype == np.float16 and not is_cast
        q, k, v = (widened(array) for array in (query, key, value))
        scores = product(q, k, fp16_sums=fp16_sums)
        if mask is not None:
            scores = scores + widened(mask)
        exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
        narrow = widened(rounded(exponentials, query.dtype))
        summed = product(narrow, v, fp16_sums=fp16_sums)
        self.largest = (float(scores.abs().max()), float(summed.abs().max()))
        return (rounded(summed / exponentials.sum(-1, keepdim=True), query.dtype),)


class Conv(OpRun):
    """Convolution that is summed in FP32 and rounded once."""

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
