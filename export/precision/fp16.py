"""Blocks whose matrix products are in FP16 and cannot overflow for any prompt.

The bounds of `export.precision.bounds` give the powers of two that each block is scaled by. The weight of the norm
before a branch and the output projection scale down. The eps of the norm at the end of the branch scales up again in
FP32 or, where there is no such norm, a multiplication does. All of these are weights of the graph, so the graph itself
depends on configs alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.plan.manifest import Accumulation, ProductBound
from export.checkpoint.weights import (
    Fp16RangeError,
    Fp16SumError,
    Scalar,
    Scaled,
    Weight,
    joined_name,
    load_as,
    load_finite,
)
from export.precision.bounds import LIMIT, ROUNDING, Modulation, ResidualBranch, growth


@dataclass(frozen=True, slots=True)
class BlockLayers:
    """Names of a block's layers; None where a branch does not end in a norm."""

    attention_norm: str
    query: str
    key: str
    value: str
    query_norm: str
    key_norm: str
    output: str
    output_norm: str | None
    feed_norm: str
    gate: str
    up: str
    down: str
    down_norm: str | None


Z_IMAGE_BLOCK = BlockLayers(
    attention_norm="attention_norm1",
    query="attention.to_q",
    key="attention.to_k",
    value="attention.to_v",
    query_norm="attention.norm_q",
    key_norm="attention.norm_k",
    output="attention.to_out.0",
    output_norm="attention_norm2",
    feed_norm="ffn_norm1",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
    down_norm="ffn_norm2",
)
QWEN3_LAYER = BlockLayers(
    attention_norm="input_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    output="self_attn.o_proj",
    output_norm=None,
    feed_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    down_norm=None,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of measuring weights: bounds for the manifest, and the weights of the graph, scaled where needed."""

    products: tuple[ProductBound, ...]
    weights: Mapping[str, Weight]


class Fp16Block:
    """A block whose matrix products are in FP16.

    The constructor turns the eps of the inner norms into parameters of the graph, and adds a scale parameter to the
    layers that no norm follows and, if products are summed in FP16, to the values. `measure` computes their values.
    """

    def __init__(self, name: str, module: Any, layers: BlockLayers, accumulation: Accumulation = "fp32") -> None:
        self.name = name
        self._sums_in_fp16 = accumulation == "fp16"
        self._layers = layers
        self._head_dim = len(module.get_submodule(layers.query_norm).weight)
        inner = (layers.query_norm, layers.key_norm, layers.output_norm, layers.down_norm)
        self._eps = {norm: _make_eps_a_parameter(module.get_submodule(norm)) for norm in inner if norm is not None}
        ends = ((layers.output, layers.output_norm), (layers.down, layers.down_norm))
        values = (layers.value,) if self._sums_in_fp16 else ()
        self._scaled = (layers.gate, layers.up, *values, *(layer for layer, norm in ends if norm is None))
        for layer in self._scaled:
            module.get_submodule(layer).scale = _parameter()

    def measure(
        self, weights: Mapping[str, Weight], modulation: Modulation | None, keys: int | None = None
    ) -> Measured:
        """Compute the bounds of the block's products, and weights scaled to respect them.

        Args:
            weights: weights of the graph; names of the block's weights begin with the block's name.
            modulation: modulation of the block's inputs, if it has any.
            keys: largest number of keys of the attention; needed if products are summed in FP16.

        Raises:
            Fp16RangeError: FP16 cannot hold the block at any scale.
            Fp16SumError: FP16 can hold the block, but not its sums.
            CheckpointError: a weight holds NaN or Inf.
        """
        if self._sums_in_fp16:
            assert keys is not None, "bounds of sums in FP16 need the number of keys"
            try:
                return self._measure(weights, modulation, keys)
            except Fp16RangeError as error:
                self._measure(weights, modulation, None)
                raise Fp16SumError(f"{error}, summed in FP16 over {keys} keys") from error
        return self._measure(weights, modulation, None)

    def _measure(self, weights: Mapping[str, Weight], modulation: Modulation | None, keys: int | None) -> Measured:
        names, load = self._layers, partial(_load, weights, self.name)
        attention_norm, feed_norm = load(names.attention_norm), load(names.feed_norm)
        if modulation is not None:
            rows = zip(load("adaLN_modulation.0").chunk(4), load("adaLN_modulation.0", "bias").chunk(4), strict=True)
            scale_msa, _, scale_mlp, _ = (modulation.largest_scale(*part) for part in rows)
            attention_norm, feed_norm = attention_norm * scale_msa, feed_norm * scale_mlp
        query, key, value, output = (load(layer) for layer in (names.query, names.key, names.value, names.output))
        attention = ResidualBranch.attention(attention_norm, query, key, value, output, self._head_dim, keys)
        gate, up, down = (load(layer) for layer in (names.gate, names.up, names.down))
        feed = ResidualBranch.feed_forward(feed_norm, gate, up, down, fp16_sums=keys is not None)
        of_query, of_key = (_by_pair(load(norm)) for norm in (names.query_norm, names.key_norm))
        longest, largest = math.sqrt(self._head_dim) * ROUNDING, torch.maximum(of_query, of_key).max().item()
        product = longest * (of_query * of_key).max().item()
        if keys is not None:
            product *= growth(self._head_dim)
        scores = ProductBound(f"{self.name}.attention", longest * largest, 0, product, 0)
        self._require_fp16_range(attention, feed, scores, keys)
        return Measured(
            (
                *self._products(attention, (names.query, names.key, names.value), names.output),
                scores,
                *self._inside(attention, keys),
                *self._products(feed, (names.gate, names.up), names.down),
            ),
            self._weights(weights, attention, feed),
        )

    def _weights(
        self, weights: Mapping[str, Weight], attention: ResidualBranch, feed: ResidualBranch
    ) -> dict[str, Weight]:
        """Return the block's weights that differ from the checkpoint's."""
        names = self._layers
        exponents = {
            names.attention_norm: -attention.entering_shift,
            names.output: attention.inner_shift - attention.returned_shift,
            names.feed_norm: -feed.entering_shift,
        }
        changed: dict[str, Weight] = {}
        for layer, exponent in exponents.items():
            name = f"{self.name}.{layer}.weight"
            changed[name] = Scaled(weights[name], exponent) if exponent else weights[name]
        for layer in (names.query, names.key, names.value, names.output, names.gate, names.up, names.down):
            name = f"{self.name}.{layer}.weight"
            load_as(changed.get(name, weights[name]), torch.float16)
        shifts = {
            names.query_norm: attention.entering_shift,
            names.key_norm: attention.entering_shift,
            names.output_norm: attention.returned_shift,
            names.down_norm: feed.returned_shift,
        }
        scales = {
            names.gate: feed.entering_shift,
            names.up: feed.entering_shift - feed.inner_shift,
            names.value: attention.entering_shift - attention.inner_shift,
            names.output: attention.returned_shift,
            names.down: feed.returned_shift,
        }
        for norm, (name, eps) in self._eps.items():
            changed[f"{self.name}.{norm}.{name}"] = Scalar(eps * 4.0 ** -shifts[norm])
        for layer in self._scaled:
            changed[f"{self.name}.{layer}.scale"] = Scalar(2.0 ** scales[layer])
        return changed

    def _require_fp16_range(
        self, attention: ResidualBranch, feed: ResidualBranch, scores: ProductBound, keys: int | None
    ) -> None:
        for part, branch in (("attention", attention), ("feed-forward part", feed)):
            if branch.range_error is not None:
                raise Fp16RangeError(f"{self.name}: FP16 cannot hold the {part} at any scale: {branch.range_error}")
        largest = max(scores.input_bound, scores.output_bound)
        if not largest <= LIMIT:
            raise Fp16RangeError(
                f"{self.name}: queries, keys or attention scores can reach {largest:.0e}, more than FP16 can hold"
            )
        if keys is not None and keys * growth(keys) > 2 * LIMIT:  # all of FP16's range: the bound is exact
            raise Fp16RangeError(f"{self.name}: the sum of the softmax over {keys} keys exceeds what FP16 can hold")

    def _inside(self, attention: ResidualBranch, keys: int | None) -> tuple[ProductBound, ...]:
        """Return the bounds of sums inside fused attention: of the softmax, and of values before the division."""
        if keys is None or attention.undivided is None:
            return ()
        shift, values, summed = attention.inner_shift, attention.inner.bound, attention.undivided.bound
        return (
            ProductBound(f"{self.name}.attention.softmax", 1.0, 0, keys * growth(keys), 0),
            ProductBound(f"{self.name}.attention.values", values, shift, summed, shift),
        )

    def _products(self, branch: ResidualBranch, first: tuple[str, ...], last: str) -> tuple[ProductBound, ProductBound]:
        """Return the bounds of the branch's first and last matrix products, named after their weights."""
        names = [f"{self.name}.{layer}.weight" for layer in (*first, last)]
        entering, inner = branch.entering_shift, branch.inner_shift
        return (
            ProductBound(joined_name(names[:-1]), branch.entering.bound, entering, branch.projected.bound, entering),
            ProductBound(names[-1], branch.inner.bound, inner, branch.returned.bound, branch.returned_shift),
        )


def measure_blocks(
    blocks: Sequence[Fp16Block],
    weights: Mapping[str, Weight],
    modulation: Callable[[], Modulation] | None = None,
    keys: int | None = None,
) -> Measured:
    """Measure all blocks of a graph; other weights of the graph stay as they are.

    Args:
        keys: largest number of keys of the attention; needed by blocks whose products are summed in FP16.
    """
    found = modulation() if modulation is not None and blocks else None
    products: list[ProductBound] = []
    changed = dict(weights)
    for block in blocks:
        measured = block.measure(weights, found, keys)
        products += measured.products
        changed |= measured.weights
    return Measured(tuple(products), changed)


def _load(weights: Mapping[str, Weight], block: str, layer: str, kind: str = "weight") -> Tensor:
    return load_finite(weights[f"{block}.{layer}.{kind}"])


def _by_pair(norm: Tensor) -> Tensor:
    """Return the larger magnitude of each pair that is rotated, [head_dim] -> [head_dim / 2]."""
    larger: Tensor = norm.unflatten(0, (2, -1)).abs().amax(0)
    return larger


def _parameter() -> nn.Parameter:
    return nn.Parameter(torch.empty((), device="meta"), requires_grad=False)


def _make_eps_a_parameter(norm: Any) -> tuple[str, float]:
    """Replace a norm's eps by a parameter; return the attribute's name and its previous value."""
    name = "eps" if hasattr(norm, "eps") else "variance_epsilon"
    eps: float = getattr(norm, name)
    setattr(norm, name, _parameter())
    return name, eps
