"""Weights of graphs: tensors of the checkpoint, joined, scaled or transposed, and read only when they are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import CheckpointError

NORMAL = 2.0**-14  # smallest FP16 number with full precision
LOSS = 2.0**-9  # largest relative L2 that a weight may lose in FP16: about the loss of BF16


class Weight(Protocol):
    """A tensor that is read by `load`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def source(self) -> str:
        """Origin of the tensor, for messages."""

    def load(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Joined:
    """The concatenated rows of several weights."""

    parts: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (sum(part.shape[0] for part in self.parts), *first[1:])

    @property
    def source(self) -> str:
        return " + ".join(part.source for part in self.parts)

    def load(self) -> Tensor:
        return torch.cat([part.load() for part in self.parts])


@dataclass(frozen=True, slots=True)
class Derived:
    """Base of weights that are computed from another one, with its shape and its source unless they say otherwise."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def source(self) -> str:
        return self.weight.source


@dataclass(frozen=True, slots=True)
class Scaled(Derived):
    """A weight times a power of two, in FP32."""

    exponent: int

    @property
    def source(self) -> str:
        return f"{self.weight.source} * 2^{self.exponent}"

    def load(self) -> Tensor:
        return self.weight.load().float() * math.ldexp(1.0, self.exponent)


@dataclass(frozen=True, slots=True)
class Transposed(Derived):
    """A matrix as [inputs, outputs], the layout of an ONNX matrix product."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[::-1]

    def load(self) -> Tensor:
        return self.weight.load().T


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number computed from the weights."""

    value: float
    source: str = "a scale"

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def load(self) -> Tensor:
        return torch.tensor(self.value, dtype=torch.float32)


class Fp16RangeError(CheckpointError):
    """Weights too large, too small or too uneven for FP16 at any scale."""


class Fp16SumError(Fp16RangeError):
    """Weights that FP16 holds, but whose products it cannot sum over so many tokens."""


def load_finite(weight: Weight) -> Tensor:
    """Load a weight in FP32.

    Raises:
        CheckpointError: the weight holds NaN or Inf.
    """
    tensor = weight.load().float()
    if not tensor.isfinite().all():
        raise CheckpointError(f"{weight.source} holds NaN or Inf")
    return tensor


def load_as(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Load a weight and round it to a dtype.

    Raises:
        CheckpointError: the weight holds NaN or Inf.
        Fp16RangeError: the weight is too large for the dtype, or so small that BF16 would be more exact than FP16.
    """
    stored = weight.load()
    tensor = stored.to(dtype)
    if not tensor.isfinite().all():
        load_finite(weight)
        raise Fp16RangeError(f"{weight.source} has values that {str(dtype).removeprefix('torch.')} cannot hold")
    if dtype == torch.float16 and stored.dtype != dtype and (lost := _lost(stored, tensor)) > LOSS:
        raise Fp16RangeError(f"{weight.source} is too small for FP16, which loses {lost:.1%} of it")
    return tensor


def _lost(exact: Tensor, rounded: Tensor) -> float:
    """Return the relative L2 error, computed in blocks to save memory."""
    squares = torch.zeros(2, dtype=torch.float64)
    for parts in zip(exact.flatten().split(1 << 24), rounded.flatten().split(1 << 24), strict=True):
        one, other = (part.double() for part in parts)
        squares += torch.stack([(one - other).square().sum(), one.square().sum()])
    off, whole = squares.sqrt().tolist()
    return float(off / whole) if whole else 0.0


def joined_name(names: Sequence[str]) -> str:
    """Join names: `a.to_q.weight`, `a.to_k.weight` -> `a.to_q+to_k.weight`."""
    if len(names) == 1:
        return names[0]
    parts = [name.rsplit(".", 2) for name in names]
    (block, _, kind), *_ = parts
    return f"{block}.{'+'.join(layer for _, layer, _ in parts)}.{kind}"


def separate_names(name: str) -> tuple[str, ...]:
    """Invert `joined_name`."""
    if "+" not in name:
        return (name,)
    block, layers, kind = name.rsplit(".", 2)
    return tuple(f"{block}.{layer}.{kind}" for layer in layers.split("+"))


def exponent(weight: Weight) -> int:
    """Return the exponent of the power of two that the weight is scaled by."""
    if isinstance(weight, Scaled):
        return weight.exponent
    return exponent(weight.weight) if isinstance(weight, Transposed) else 0
