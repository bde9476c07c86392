"""Changes of weights by a prepared LoRA, and how they are stored in its file.

A change is kept in its smallest exact form, and computed in blocks of rows while a weight is merged. Knows arrays; not
files, plans or LoRAs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from engine.array import Array
from engine.plan.merge import Product, Summand

VALUES = "values"  # the only field that is as large as the weight; read when the weight is merged


@dataclass(frozen=True, slots=True)
class LowRank:
    """up @ down.

    Attributes:
        down: [rank, in] FP32.
        up: [out, rank] FP32.
    """

    down: Array
    up: Array

    def fields(self) -> dict[str, Array]:
        return {"down": self.down, "up": self.up}

    def times(self, strength: float) -> Self:
        return self if strength == 1 else replace(self, up=self.up * np.float32(strength))

    def place(self, row: int, column: int, transposed: bool) -> Summand:
        # (up @ down).T as down.T @ up.T: BLAS takes transposed factors as they are
        left, right = (self.down.T, self.up.T) if transposed else (self.up, self.down)
        return Product(left, right, row, column)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """Rows of kron(w1, w2), in any order.

    Attributes:
        w1, w2: FP32.
        order: [out] int32, the row of kron(w1, w2) that each row of the weight gets.
    """

    w1: Array
    w2: Array
    order: Array

    def fields(self) -> dict[str, Array]:
        return {"w1": self.w1, "w2": self.w2, "order": self.order}

    def times(self, strength: float) -> Self:
        return self if strength == 1 else replace(self, w1=self.w1 * np.float32(strength))

    def place(self, row: int, column: int, transposed: bool) -> Summand:
        return KroneckerRows(self, row, column, transposed)


@dataclass(frozen=True, slots=True)
class KroneckerRows:
    """A `Kronecker` in its place in a weight."""

    delta: Kronecker
    row: int
    column: int
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        shape = len(self.delta.order), self.delta.w1.shape[1] * self.delta.w2.shape[1]
        return shape[::-1] if self.transposed else shape

    def write(self, rows: slice, out: Array) -> None:
        w1, w2, order = self.delta.w1, self.delta.w2, self.delta.order
        if self.transposed:
            one, other = np.divmod(order, len(w2))
            first, second = np.divmod(np.arange(rows.start, rows.stop), w2.shape[1])
            np.multiply(w1.T[np.ix_(first, one)], w2.T[np.ix_(second, other)], out=out)
        else:
            one, other = np.divmod(order[rows], len(w2))
            blocks = out.reshape(len(out), w1.shape[1], w2.shape[1])
            np.multiply(w1[one][:, :, None], w2[other][:, None, :], out=blocks)


@dataclass(frozen=True, slots=True)
class Dense:
    """A change in no smaller form: scale * values.

    Attributes:
        load: returns the values, [out, in] or [out], FP16.
        scale: [1] FP32.
    """

    load: Callable[[], Array]
    scale: Array

    @classmethod
    def of(cls, values: Array) -> Self:
        """Store values FP32; all but those 2^-14 times the largest one keep FP16's whole precision."""
        scale = np.array([np.abs(values).max(initial=0.0) or 1.0], np.float32)
        halves = (values / scale).astype(np.float16)
        return cls(lambda: halves, scale)

    def fields(self) -> dict[str, Array]:
        return {VALUES: self.load(), "scale": self.scale}

    def times(self, strength: float) -> Self:
        return self if strength == 1 else replace(self, scale=self.scale * np.float32(strength))

    def place(self, row: int, column: int, transposed: bool) -> Summand:
        values = np.atleast_2d(self.load())
        return DenseRows(values.T if transposed else values, self.scale, row, column)


@dataclass(frozen=True, slots=True)
class DenseRows:
    """A `Dense` in its place in a weight."""

    values: Array
    scale: Array
    row: int
    column: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns

    def write(self, rows: slice, out: Array) -> None:
        np.multiply(self.values[rows], self.scale, out=out)


Delta = LowRank | Kronecker | Dense


def read_delta(fields: Mapping[str, Array], values: Callable[[], Array]) -> Delta:
    """Return the delta of the fields that `fields()` returned.

    Args:
        fields: the fields without `VALUES`.
        values: reads `VALUES`, if the delta has them.
    """
    match sorted(fields):
        case ["down", "up"]:
            return LowRank(**fields)
        case ["order", "w1", "w2"]:
            return Kronecker(**fields)
        case ["scale"]:
            return Dense(values, fields["scale"])
    raise ValueError(f"unknown fields {sorted(fields)}")
