"""Forward passes of layers that the graphs share, written for tracing over DiffSynth's and Qwen3's weights.

No function uses complex numbers, changes tensors in place or branches on data. Residual streams are FP32; a matrix
product has the dtype of its weights. `export.precision` gives layers the attributes `sums`, the dtype in which their
products are summed, and `scale`, a factor of their results; it also makes the eps of norms tensors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, layer: Any) -> Tensor:
    """Return x @ W^T + b in the dtype of W."""
    if layer.bias is None:
        return matmul(x.to(layer.weight.dtype), layer.weight.T, sums_of(layer))
    return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def linears(x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """Apply several layers without biases to x in one matrix product; the exporter joins their weights.

    Batch and tokens are one axis of the product. With two axes, TensorRT keeps the weights in one layout for profiles
    of batch 1 and in another for the rest, so its plans hold them twice (docs/findings.md).

    Args:
        x: [B, S, D].
    """
    weights = [layer.weight for layer in layers]
    joined = matmul(x.flatten(0, 1).to(weights[0].dtype), torch.cat(weights).T, sums_of(layers[0]))
    return torch.split(joined.unflatten(0, x.shape[:2]), [len(weight) for weight in weights], dim=-1)


def modulation(condition: Tensor, layer: Any) -> Tensor:
    """Return layer(condition) for conditions of [B, D].

    The product has 2 B rows. With one row, TensorRT has a layout of its own for the weights, and its plans hold them
    twice if other profiles have larger batches (docs/findings.md).
    """
    return linear(torch.cat([condition, condition]), layer)[: condition.shape[0]]


def matmul(a: Tensor, b: Tensor, sums: torch.dtype | None) -> Tensor:
    """Return a @ b in their own dtype, summed in `sums`, or in what the backend chooses.

    TensorRT runs casts from FP16 to FP32, product and cast back as one FP16 product that is summed in FP32.
    """
    return a @ b if sums is None else (a.to(sums) @ b.to(sums)).to(a.dtype)


def sums_of(layer: Any) -> torch.dtype | None:
    """Return the dtype in which the products of a layer are summed; None if the backend chooses."""
    dtype: torch.dtype | None = getattr(layer, "sums", None)
    return dtype


def scaled(y: Tensor, layer: Any) -> Tensor:
    """Return a layer's output in its own dtype, multiplied by the layer's `scale` if it has one."""
    return unscaled(y, layer).to(y.dtype) if hasattr(layer, "scale") else y


def unscaled(y: Tensor, layer: Any) -> Tensor:
    """Return a layer's output in FP32, multiplied by the layer's `scale` if it has one."""
    return y.float() * layer.scale if hasattr(layer, "scale") else y.float()


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """Apply RMSNorm over the last axis in FP32, with the weight and the eps of DiffSynth's or Qwen3's module."""
    x, eps = x.float(), getattr(norm, "variance_epsilon", None)
    # division instead of rsqrt: ONNX Runtime fuses a norm into one kernel in this form only
    normed: Tensor = (
        x / torch.sqrt(x.square().mean(-1, keepdim=True) + (norm.eps if eps is None else eps)) * norm.weight
    )
    return normed


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply a rotary embedding, which rotates element i of a head with element i + head_dim / 2.

    Args:
        x: [B, S, heads, head_dim].
        cos, sin: [S, head_dim / 2].
    """
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, sums: torch.dtype | None, *, causal: bool = False) -> Tensor:
    """Attend over [B, S, heads, head_dim] in the dtype of `value`; returns [B, S, heads * head_dim].

    TensorRT fuses the attention only if there are two heads or more. For products that are summed in FP32, the casts
    must surround each product (docs/findings.md). Queries and keys are scaled before they are rounded.
    """
    root = query.shape[-1] ** -0.25
    q, k, v = (t.to(value.dtype).transpose(1, 2) for t in (query * root, key * root, value))
    if sums is None:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)
    else:
        scores = matmul(q, k.transpose(2, 3), sums)
        if causal:
            later = torch.full(scores.shape[-2:], torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu(1)
            scores = scores + later
        attended = matmul(torch.softmax(scores, dim=-1), v, sums)
    return attended.transpose(1, 2).flatten(2)


def attention(module: Any, x: Tensor, cos: Tensor, sin: Tensor, queries: int) -> Tensor:
    """Self-attention of a ZImageTransformerBlock for the first `queries` rows: [B, S, D] -> [B, queries, D].

    The weights of queries and keys are half-split (`export.checkpoint.rotary_layout`).
    """
    heads = (module.num_heads, module.head_dim)
    query, key, value = (y.unflatten(-1, heads) for y in linears(x, module.to_q, module.to_k, module.to_v))
    query, key = rms_norm(query[:, :queries], module.norm_q), rms_norm(key, module.norm_k)
    query, key = rotate(query, cos[:queries], sin[:queries]), rotate(key, cos, sin)
    attended = attend(query, key, scaled(value, module.to_v), sums_of(module.to_v))
    return linear(attended, module.to_out[0])


def swiglu(x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
    """Return down(silu(gate(x)) * up(x)); the product is in FP32 and is rounded once for `down`."""
    gated, raised = linears(x, gate, up)
    return linear(F.silu(unscaled(gated, gate)) * unscaled(raised, up), down)


def transformer_block(
    module: Any, x: Tensor, cos: Tensor, sin: Tensor, condition: Tensor | None = None, queries: int | None = None
) -> Tensor:
    """Apply a ZImageTransformerBlock: [B, S, D] float32 -> [B, queries, D] float32.

    Args:
        cos, sin: [S, head_dim / 2].
        condition: [B, 256] timestep embedding for blocks with modulation, else None.
        queries: number of first rows to compute; None for all.
    """
    wanted = x.shape[1] if queries is None else queries

    def attend_to(y: Tensor) -> Tensor:
        return rms_norm(attention(module.attention, y, cos, sin, wanted), module.attention_norm2)

    def feed(y: Tensor) -> Tensor:
        ffn = module.feed_forward
        return rms_norm(swiglu(y, ffn.w1, ffn.w3, ffn.w2), module.ffn_norm2)

    if condition is None:
        x = x[:, :wanted] + attend_to(rms_norm(x, module.attention_norm1))
        return x + feed(rms_norm(x, module.ffn_norm1))
    scale_msa, gate_msa, scale_mlp, gate_mlp = modulation(condition, module.adaLN_modulation[0])[:, None].chunk(4, -1)
    x = x[:, :wanted] + gate_msa.tanh() * attend_to(rms_norm(x, module.attention_norm1) * (1 + scale_msa))
    return x + gate_mlp.tanh() * feed(rms_norm(x, module.ffn_norm1) * (1 + scale_mlp))
