"""GroupNorm as one node of the ONNX graph.

torch exports a GroupNorm as InstanceNormalization between reshapes, and TensorRT stores its FP32 input and output. It
fuses ONNX's own GroupNormalization. In torch the operator below is an ordinary GroupNorm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset21
from torch import Tensor


@torch.library.custom_op("zimage::group_norm", mutates_args=())
def fused_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Apply GroupNorm to [B, C, h, w] in FP32, and round the result once to the dtype of x and the weights."""
    return F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)


@fused_group_norm.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


FUSED_GROUP_NORM = torch.ops.zimage.group_norm.default


def to_onnx(x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Any:
    """Translate `fused_group_norm` for the exporter."""
    return opset21.GroupNormalization(x, weight, bias, num_groups=groups, epsilon=eps)
