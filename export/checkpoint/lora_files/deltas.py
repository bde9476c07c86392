"""Changes of a weight by a LoRA file, in FP32: products of two matrices, LoHa, LoKr, DoRA and whole differences.

Rules and names are those of LyCORIS (`lycoris/modules`), peft and ComfyUI (`comfy/weight_adapter`). Knows tensors and
their files; not keys or layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from export.checkpoint.stored_weights import StoredWeight
from export.checkpoint.weights import Derived, Weight

EPSILON = torch.finfo(torch.float32).eps  # that LyCORIS adds to the norms of DoRA


class Delta(Protocol):
    """Change that a LoRA adds to a weight at a strength of 1."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def source(self) -> str:
        """Origin of the change, for messages."""

    def load(self) -> Tensor:
        """Return the change in FP32."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product of matrices, each [rows, rank] or [rank, columns], read in FP32; a single one is itself."""

    factors: tuple[StoredWeight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.factors[0].shape[:1], *self.factors[-1].shape[1:])

    def load(self) -> Tensor:
        return reduce(torch.matmul, self.load_factors())

    def load_factors(self) -> list[Tensor]:
        return [factor.load().float() for factor in self.factors]


@dataclass(frozen=True, slots=True)
class LowRank:
    """scale * up @ down: a plain LoRA."""

    product: Product
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.product.shape

    @property
    def source(self) -> str:
        return self.product.factors[0].source

    def load(self) -> Tensor:
        return self.scale * self.product.load()


@dataclass(frozen=True, slots=True)
class Hadamard:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), element by element: LoHa."""

    first: Product
    second: Product
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    @property
    def source(self) -> str:
        return self.first.factors[0].source

    def load(self) -> Tensor:
        return self.scale * self.first.load() * self.second.load()


@dataclass(frozen=True, slots=True)
class Kronecker:
    """scale * kron(w1, w2), each of which may be a product: LoKr."""

    first: Product
    second: Product
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(one * other for one, other in zip(self.first.shape, self.second.shape, strict=True))

    @property
    def source(self) -> str:
        return self.first.factors[0].source

    def load(self) -> Tensor:
        return torch.kron(self.scale * self.first.load(), self.second.load())


@dataclass(frozen=True, slots=True)
class Full(Derived):
    """A whole difference, as full fine-tuning gives it."""

    weight: StoredWeight

    def load(self) -> Tensor:
        return self.weight.load().float()


@dataclass(frozen=True, slots=True)
class Decomposed:
    """The change from W to (W + delta) * magnitude / |W + delta|: DoRA.

    Attributes:
        weights: the weights that the layer joins, in order.
        magnitude: [out], or [out, 1], or [1, in] for norms over the outputs.
    """

    weights: tuple[Weight, ...]
    delta: Delta
    magnitude: StoredWeight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.delta.shape

    @property
    def source(self) -> str:
        return self.magnitude.source

    def load(self) -> Tensor:
        weight = torch.cat([weight.load().float() for weight in self.weights])
        changed = weight + self.delta.load()
        over = 0 if self.is_by_input else 1
        magnitude = self.magnitude.load().float().reshape((1, -1) if self.is_by_input else (-1, 1))
        scale: Tensor = magnitude / (changed.norm(dim=over, keepdim=True) + EPSILON)
        return changed * scale - weight

    @property
    def is_by_input(self) -> bool:
        """True for one magnitude per input."""
        return len(self.magnitude.shape) == 2 and self.magnitude.shape == (1, self.delta.shape[1])

    @property
    def fits(self) -> bool:
        """True if there is one magnitude per output or per input."""
        outputs = self.delta.shape[0]
        return self.is_by_input or self.magnitude.shape in ((outputs,), (outputs, 1), (1, outputs))


@dataclass(frozen=True, slots=True)
class Change:
    """Rows of a delta times a strength; a fused layer changes several weights with the rows of one delta.

    Attributes:
        rows: first row and the row after the last; None for all.
    """

    delta: Delta
    strength: float
    rows: tuple[int, int] | None = None

    @property
    def source(self) -> str:
        return self.delta.source

    def load(self) -> Tensor:
        return self.strength * self.cut(self.delta.load())

    def cut(self, rows: Tensor) -> Tensor:
        """Return the rows of this change, of a tensor with those of the whole delta."""
        return rows if self.rows is None else rows[slice(*self.rows)]


def stored_parts(delta: Delta) -> Sequence[StoredWeight]:
    """Return the tensors of the LoRA file that a delta is computed from."""
    match delta:
        case LowRank():
            return delta.product.factors
        case Hadamard() | Kronecker():
            return (*delta.first.factors, *delta.second.factors)
        case Full():
            return (delta.weight,)
        case Decomposed():
            return (delta.magnitude, *stored_parts(delta.delta))
    raise AssertionError(delta)
