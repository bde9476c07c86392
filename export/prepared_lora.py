"""Preparation of a LoRA for refittable plans: its keys are matched, its changes stored, its FP16 scales computed.

The runtime has neither PyTorch nor the checkpoint, so the work that needs them is done here, once. `engine.plan.lora`
reads the result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.array import Array
from engine.errors import CheckpointError, LoraMismatch
from engine.plan import delta as prepared
from engine.plan.lora import About, PreparedLora, Scaling, require_refittable
from engine.plan.manifest import GraphName, Manifest, Precision, ProductBound
from engine.plan.shapes import longest_sequence
from engine.request import MAX_LORA_STRENGTH
from export.checkpoint.files import Checkpoint
from export.checkpoint.lora import Lora, Merged, merge
from export.checkpoint.lora_files.deltas import Change, Hadamard, Kronecker, LowRank
from export.checkpoint.rotary_layout import half_split, is_rotated
from export.checkpoint.weights import Fp16RangeError, exponent, load_as
from export.graphs.checkpoint_graphs import make_graphs

FP16_MAX = 65504.0
FINEST = 1 / 16  # between two strengths


def prepare(checkpoint: Checkpoint, loras: Sequence[Lora], manifest: Manifest) -> PreparedLora:
    """Prepare LoRAs for the runtime.

    Args:
        checkpoint: checkpoint that the plans were built from.
        loras: LoRAs to add up.

    Raises:
        LoraMismatch: the plans are not refittable, or were built from another checkpoint.
        CheckpointError: a key matches no layer, or the merged weights leave the range of the plans' precision.
    """
    require_refittable(manifest)
    if checkpoint.fingerprint() != manifest.model.weights_sha256:
        raise LoraMismatch(f"the plans of {manifest.model.name} were built from other weights than {checkpoint.name}'s")
    merged = merge(checkpoint, loras)
    deltas = _deltas(merged, sum(merged.transformer.config["axes_dims"]))
    parts = {part for weight in manifest.refit_weights for part in weight.parts}
    if missing := sorted(deltas.keys() - parts):
        raise CheckpointError(f"the LoRA changes {missing[0]}, which these plans cannot swap; merge it with --lora")
    keys = longest_sequence(manifest.profiles, manifest.model)
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    scalings = _scalings(checkpoint, loras, manifest, precisions, keys)
    return PreparedLora(About(manifest.model.weights_sha256, precisions, scalings, keys), deltas)


def _scalings(
    checkpoint: Checkpoint,
    loras: Sequence[Lora],
    manifest: Manifest,
    precisions: Mapping[GraphName, Precision],
    keys: int,
) -> tuple[Scaling, ...]:
    """Return the scalings for strengths up to 1, and up to the largest of each sign that FP16 can hold.

    Few, since each reads and measures the whole transformer.

    Raises:
        Fp16RangeError: FP16 cannot hold the weights at a strength of 1.
    """

    def measure(strength: float) -> _Measured:
        merged = merge(checkpoint, [replace(lora, scale=strength * lora.scale) for lora in loras])
        return _measure(merged, manifest, precisions, keys, strength)

    unchanged = _Measured(
        Scaling(0.0, {}), [product for graph in manifest.graphs.values() for product in graph.products]
    )
    try:
        usual = measure(1.0)
    except Fp16RangeError as error:
        raise Fp16RangeError(f"with the LoRA, {error}; give it a smaller strength, such as FILE:0.5") from error
    found = _steps(unchanged, usual, measure)
    for weaker, strengths in ((usual, (MAX_LORA_STRENGTH, 2.0)), (unchanged, (-MAX_LORA_STRENGTH, -2.0, -1.0))):
        for strength in strengths:  # the first that FP16 can hold; requests for larger ones are refused
            with suppress(Fp16RangeError):
                found += _steps(weaker, measure(strength), measure)
                break
    return tuple(measured.scaling for measured in found)


@dataclass(frozen=True, slots=True)
class _Measured:
    """The scaling at a strength, and the bounds of the products that it follows from."""

    scaling: Scaling
    products: Sequence[ProductBound]

    def holds(self, weaker: "_Measured") -> bool:
        """Return True if products also fit FP16 at all strengths from a weaker one to this one, with this scaling.

        Every bound grows with lengths of rows. Those of W + s D are convex in s, so that they are largest at one of the
        ends. A product of two lengths, one of which grows as the other shrinks, can exceed both ends by less than the
        bounds leave: they are at most half of FP16's largest number (`LIMIT`).
        """
        own = {product.name: product for product in self.products}
        return all(
            math.ldexp(product.input_bound, -own[product.name].input_shift) <= FP16_MAX
            and math.ldexp(product.output_bound, -own[product.name].output_shift) <= FP16_MAX
            for product in weaker.products
        )


def _steps(weaker: _Measured, stronger: _Measured, measure: Callable[[float], _Measured]) -> list[_Measured]:
    """Return the measured strengths after the weaker one, each of which holds from the one before it."""
    one, other = weaker.scaling.strength, stronger.scaling.strength
    if stronger.holds(weaker) or abs(other - one) <= FINEST:
        return [stronger]
    middle = measure((one + other) / 2)
    return [*_steps(weaker, middle, measure), *_steps(middle, stronger, measure)]


def _measure(
    merged: Checkpoint, manifest: Manifest, precisions: Mapping[GraphName, Precision], keys: int, strength: float
) -> _Measured:
    """Return the scaling of merged weights.

    Raises:
        Fp16RangeError: FP16 cannot hold them.
    """
    changed = {f"transformer.{name}" for name, own in merged.transformer.weights.items() if isinstance(own, Merged)}
    exponents: dict[str, int] = {}
    scales: dict[str, float] = {}
    products: list[ProductBound] = []
    for name, module in make_graphs(merged, precisions, manifest.accumulation).items():
        measured = module.measure(keys)
        products += measured.products
        for refitted in manifest.graphs[name].refittable:
            own = [measured.weights[part] for part in refitted.parts or (refitted.name,)]
            if not refitted.parts:
                scales[refitted.name] = own[0].load().item()
                continue
            exponents[refitted.name] = exponent(own[0])
            for part, weight in zip(refitted.parts, own, strict=True):
                if part in changed:
                    load_as(weight, getattr(torch, refitted.dtype))
    return _Measured(Scaling(strength, exponents, scales), products)


def _deltas(merged: Checkpoint, head_dim: int) -> dict[str, tuple[prepared.Delta, ...]]:
    """Return the deltas of every changed parameter, with rows in the order of the graphs.

    Products of low rank become one of a higher rank.
    """
    found = {}
    for name, weight in merged.transformer.weights.items():
        if isinstance(weight, Merged):
            rows = _Rows(head_dim if is_rotated(name) else 0)
            deltas = [rows.delta(change) for change in weight.changes]
            pairs = [delta for delta in deltas if isinstance(delta, prepared.LowRank)]
            rest = [delta for delta in deltas if not isinstance(delta, prepared.LowRank)]
            found[f"transformer.{name}"] = (*([_joined(pairs)] if pairs else []), *rest)
    return found


def _joined(pairs: Sequence[prepared.LowRank]) -> prepared.LowRank:
    if len(pairs) == 1:
        return pairs[0]
    return prepared.LowRank(np.concatenate([pair.down for pair in pairs]), np.hstack([pair.up for pair in pairs]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The order of a parameter's rows in the graphs.

    Attributes:
        head_dim: size of a head of queries or keys; 0 for other parameters, whose order stays.
    """

    head_dim: int

    def delta(self, change: Change) -> prepared.Delta:
        """Return a change in its smallest exact form; else rounded to FP16."""
        match change.delta:
            case LowRank(product, scale):
                up, down = product.load_factors()
                return self._low_rank(change, up, down, scale)
            case Hadamard(first, second, scale):
                ups, downs = zip(first.load_factors(), second.load_factors(), strict=True)
                rank, (outputs, inputs) = ups[0].shape[1] * ups[1].shape[1], change.delta.shape
                if 2 * rank * (outputs + inputs) <= outputs * inputs:  # as FP32, not larger than FP16 values
                    up = (ups[0][:, :, None] * ups[1][:, None, :]).flatten(1)
                    down = (downs[0][:, None, :] * downs[1][None, :, :]).flatten(0, 1)
                    return self._low_rank(change, up, down, scale)
            case Kronecker(first, second, scale):
                order = torch.arange(change.delta.shape[0], dtype=torch.int32)
                w1 = change.strength * scale * first.load()
                return prepared.Kronecker(w1.numpy(), second.load().numpy(), self._order(change, order))
        return prepared.Dense.of(change.strength * self._order(change, change.delta.load()))

    def _low_rank(self, change: Change, up: Tensor, down: Tensor, scale: float) -> prepared.LowRank:
        return prepared.LowRank(down.numpy(), self._order(change, change.strength * scale * up))

    def _order(self, change: Change, rows: Tensor) -> Array:
        own = change.cut(rows)
        ordered = half_split(own, self.head_dim) if self.head_dim else own
        return ordered.contiguous().numpy()
