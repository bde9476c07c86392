"""One layer of a LoRA file: its tensors by role become the deltas of the layer's weight and bias.

Scales are those of peft and LyCORIS: alpha / rank, and 1 without alpha. Knows roles; not keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CheckpointError
from export.checkpoint.lora_files.deltas import (
    Decomposed,
    Delta,
    Full,
    Hadamard,
    Kronecker,
    LowRank,
    Product,
    stored_parts,
)
from export.checkpoint.stored_weights import StoredWeight
from export.checkpoint.weights import Weight, load_finite


@dataclass(frozen=True, slots=True)
class Strength:
    """Strength of all pairs of a file: alpha / rank, or alpha / sqrt(rank) if it is rank-stabilised.

    Attributes:
        alpha: None for the rank itself, a strength of 1.
    """

    alpha: float | None = None
    rank_stabilised: bool = False


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The tensors of one layer of a LoRA file.

    Attributes:
        names: official names of the layer, or of the layers that it joins.
        strength: strength of the whole file, for tensors without an alpha.
        weights: the transformer's weights.
    """

    file: Path
    names: tuple[str, ...]
    tensors: Mapping[str, StoredWeight]  # by role
    strength: Strength
    weights: Mapping[str, Weight]

    def deltas(self) -> dict[str, Delta]:
        """Return the deltas of the layer's weight and of its bias, those that there are.

        Raises:
            CheckpointError: tensors are missing, or do not fit the layer.
        """
        found: dict[str, Delta] = {}
        if "diff_b" in self.tensors:
            found["bias"] = Full(self.tensors["diff_b"])
        if self.tensors.keys() - {"diff_b"}:
            found["weight"] = self._decomposed(self._weight())
        for kind, delta in found.items():
            self._check(delta, kind)
        return found

    def _weight(self) -> Delta:
        roles = self.tensors.keys()
        if roles & {"down", "up"}:
            down, up = self._take("down"), self._take("up")
            rank = self._require_pair(down, up)
            divisor = math.sqrt(rank) if self.strength.rank_stabilised else rank
            return LowRank(Product((up, down)), self._scale(rank, divisor))
        if any(role.startswith("hada") for role in roles):
            first, second = self._product("hada_w1"), self._product("hada_w2")
            rank = first.factors[-1].shape[0]
            return Hadamard(first, second, self._scale(rank, rank))
        if any(role.startswith("lokr") for role in roles):
            first, second = self._product("lokr_w1"), self._product("lokr_w2")
            ranks = [product.factors[-1].shape[0] for product in (second, first) if len(product.factors) > 1]
            # with two whole matrices the scale is 1 and alpha is any number: trainers store 1e10 and the like
            return Kronecker(first, second, self._scale(ranks[0], ranks[0]) if ranks else 1.0)
        if "diff" in roles:
            return Full(self._take("diff"))
        raise self._error(f"there is only {' and '.join(stored.key for stored in self.tensors.values())}")

    def _decomposed(self, delta: Delta) -> Delta:
        magnitude = self.tensors.get("dora_scale")
        if magnitude is None:
            return delta
        weights = tuple(self.weights[f"{name}.weight"] for name in self.names)
        found = Decomposed(weights, delta, magnitude)
        if not found.fits:
            raise self._error(f"there are magnitudes {list(magnitude.shape)}, expected one for each row")
        return found

    def _product(self, name: str) -> Product:
        """Return a matrix, which is stored whole or as two factors."""
        roles = (name,) if name in self.tensors else (f"{name}_a", f"{name}_b")
        factors = tuple(map(self._take, roles))
        if any(len(factor.shape) != 2 or 0 in factor.shape for factor in factors):
            raise self._error(f"there are tensors of {[list(factor.shape) for factor in factors]}, expected matrices")
        if len(factors) == 2 and factors[0].shape[1] != factors[1].shape[0]:
            raise self._error(f"{factors[0].key} and {factors[1].key} have different ranks")
        return Product(factors)

    def _take(self, role: str) -> StoredWeight:
        if role not in self.tensors:
            raise self._error(f"there is no {role} matrix" if role in ("down", "up") else f"there is no {role}")
        return self.tensors[role]

    def _require_pair(self, down: StoredWeight, up: StoredWeight) -> int:
        """Return the rank of a pair that fits the layer."""
        outputs, inputs = self._expected("weight") if len(self._expected("weight")) == 2 else (0, 0)
        rank = down.shape[0] if down.shape else 0
        if rank == 0 or down.shape != (rank, inputs) or up.shape != (outputs, rank):
            raise self._error(
                f"there are matrices {list(down.shape)} and {list(up.shape)}, "
                f"expected [rank, {inputs}] and [{outputs}, rank]"
            )
        return rank

    def _check(self, delta: Delta, kind: str) -> None:
        """Raise CheckpointError for tensors that do not fit the layer, or hold no finite numbers."""
        if any(f"{name}.{kind}" not in self.weights for name in self.names):
            raise self._error(f"{delta.source} changes a {kind}, but the layer has none")
        if isinstance(delta, Hadamard) and delta.second.shape != delta.first.shape:
            raise self._error(f"there are products {list(delta.first.shape)} and {list(delta.second.shape)}")
        if delta.shape != self._expected(kind):
            raise self._error(f"there is a change of shape {list(delta.shape)}, expected {list(self._expected(kind))}")
        for stored in stored_parts(delta):
            load_finite(stored)
            if not (dtype := stored.load().dtype).is_floating_point:
                raise CheckpointError(f"{stored.source} must hold floating point numbers, got {dtype}")

    def _expected(self, kind: str) -> tuple[int, ...]:
        shapes = [self.weights[f"{name}.{kind}"].shape for name in self.names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _scale(self, rank: int, divisor: float) -> float:
        own = _number(self.tensors["alpha"]) if "alpha" in self.tensors else self.strength.alpha
        alpha = float(rank) if own is None else own
        if not math.isfinite(alpha):
            raise self._error(f"alpha must be finite, got {alpha}")
        return alpha / divisor

    def _error(self, what: str) -> CheckpointError:
        joined = " and ".join(f"{name}.weight" for name in self.names)
        return CheckpointError(f"{self.file}: for {joined} {what}")


def _number(stored: StoredWeight) -> float:
    tensor = stored.load()
    if tensor.numel() != 1 or tensor.is_complex():
        raise CheckpointError(f"{stored.source} must be one number, got {tensor.dtype} of shape {list(tensor.shape)}")
    return float(tensor)
