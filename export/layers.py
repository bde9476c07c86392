"""The forward passes that the graphs share, written for tracing over DiffSynth's weights.

Nothing here is complex-valued, mutates in place or branches on data; residual streams are FP32, matrix products are
in the dtype of their weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, layer: Any) -> Tensor:
    """x @ W^T + b in the dtype of W."""
    return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, FP32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs, the real form of DiffSynth's complex product.

    Args:
        x: [B, S, heads, head_dim].
        cos, sin: [S, head_dim / 2].
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Attention over [B, S, heads, head_dim] in the dtype of `value`; returns [B, S, heads * head_dim].

    Two heads at least, or TensorRT sees no multi-head attention to fuse.
    """
    q, k, v = (t.to(value.dtype).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def attention(module: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Self-attention of a ZImageTransformerBlock: [B, S, D] -> [B, S, D]."""
    heads = (module.num_heads, module.head_dim)
    query, key, value = (linear(x, layer).unflatten(-1, heads) for layer in (module.to_q, module.to_k, module.to_v))
    query = rotate_pairs(rms_norm(query, module.norm_q.weight, module.norm_q.eps), cos, sin)
    key = rotate_pairs(rms_norm(key, module.norm_k.weight, module.norm_k.eps), cos, sin)
    return linear(attend(query, key, value), module.to_out[0])


def swiglu(x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
    """down(silu(gate(x)) * up(x)); the product in FP32, rounded once for `down`."""
    return linear(F.silu(linear(x, gate).float()) * linear(x, up).float(), down)


def transformer_block(module: Any, x: Tensor, cos: Tensor, sin: Tensor, condition: Tensor | None = None) -> Tensor:
    """A ZImageTransformerBlock.

    Args:
        x: [B, S, D] float32.
        condition: [B, 256] timestep embedding for blocks with modulation, else None.
    """

    def norm(layer: Any, y: Tensor) -> Tensor:
        return rms_norm(y, layer.weight, layer.eps)

    def attend_to(y: Tensor) -> Tensor:
        return norm(module.attention_norm2, attention(module.attention, y, cos, sin))

    def feed(y: Tensor) -> Tensor:
        ffn = module.feed_forward
        return norm(module.ffn_norm2, swiglu(y, ffn.w1, ffn.w3, ffn.w2))

    if condition is None:
        x = x + attend_to(norm(module.attention_norm1, x))
        return x + feed(norm(module.ffn_norm1, x))
    scale_msa, gate_msa, scale_mlp, gate_mlp = linear(condition, module.adaLN_modulation[0])[:, None].chunk(4, -1)
    x = x + gate_msa.tanh() * attend_to(norm(module.attention_norm1, x) * (1 + scale_msa))
    return x + gate_mlp.tanh() * feed(norm(module.ffn_norm1, x) * (1 + scale_mlp))
