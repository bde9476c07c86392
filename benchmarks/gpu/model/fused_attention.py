"""Attention of our graphs by torch's fused kernels.

The graphs write attention as products and a softmax, which TensorRT fuses. PyTorch would store the matrix of scores,
32 GB in FP32 for 2048 x 2048 pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from export.graphs import layers


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let modules of `export.graphs` use fused attention."""
    written = layers.attend
    layers.attend = attend
    try:
        yield
    finally:
        layers.attend = written


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sums: torch.dtype | None, *, causal: bool = False
) -> torch.Tensor:
    """Compute `export.graphs.layers.attend`."""
    root = query.shape[-1] ** -0.25
    q, k, v = (t.to(value.dtype).to(sums or value.dtype).transpose(1, 2) for t in (query * root, key * root, value))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
    return attended.to(value.dtype).transpose(1, 2).flatten(2)
