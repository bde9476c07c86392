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
class StoredArray:
    """An array that is read when it is needed.

    Attributes:
        dtype: as safetensors names it, such as "F16".
    """

    load: Callable[[], Array]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class LowRank:
    """up @ down.

    Attributes:
        down: [rank, in] FP32.
        up: [out, rank] FP32.
    """

    down: Array
    up: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.up), self.down.shape[1]

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

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.order), self.w1.shape[1] * self.w2.shape[1]

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
        load: returns the values, FP16.
        scale: [1] FP32.
        shape: (out, in) or (out,).
    """

    load: Callable[[], Array]
    scale: Array
    shape: tuple[int, ...]

    @classmethod
    def of(cls, values: Array) -> Self:
        """Store values FP32; all but those 2^-14 times the largest one keep FP16's whole precision."""
        scale = np.array([np.abs(values).max(initial=0.0) or 1.0], np.float32)
        halves = (values / scale).astype(np.float16)
        return cls(lambda: halves, scale, halves.shape)

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


def read_delta(fields: Mapping[str, Array], values: StoredArray | None) -> Delta:
    """Return the delta of the fields that `fields()` returned.

    Args:
        fields: the fields without `VALUES`.
        values: `VALUES`, if the delta has them.

    Raises:
        ValueError: the fields are those of no delta, or do not fit each other.
    """
    match sorted(fields):
        case ["down", "up"] if _fit(fields, 2, np.float32) and 0 < len(fields["down"]) == fields["up"].shape[1]:
            return LowRank(**fields)
        case ["order", "w1", "w2"] if _fit({n: fields[n] for n in ("w1", "w2")}, 2, np.float32) and _is_order(**fields):
            return Kronecker(**fields)
        case ["scale"] if values is not None and values.dtype == "F16" and fields["scale"].shape == (1,):
            return Dense(values.load, fields["scale"], values.shape)
    found = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in sorted(fields.items()))
    raise ValueError(f"a change has {found}{'' if values is None else f', {VALUES} {values.dtype}'}")


def _fit(arrays: Mapping[str, Array], dimensions: int, dtype: type) -> bool:
    return all(array.ndim == dimensions and array.dtype == dtype for array in arrays.values())


def _is_order(order: Array, w1: Array, w2: Array) -> bool:
    rows = len(w1) * len(w2)
    return _fit({"order": order}, 1, np.int32) and bool(((order >= 0) & (order < rows)).all())
