"""The order of elements within a head of queries and keys, which decides the pairs that a rotary embedding rotates.

Z-Image stores the two elements of a pair as neighbours. The graphs want them half a head apart, as in Qwen3: then the
rotation works on two contiguous halves, without a gather. Rows of the weights are reordered, so queries and keys hold
the same numbers in another order, and attention scores stay the same but for the order of their sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from export.checkpoint.weights import Derived, Weight

ROTATED = ("attention.to_q", "attention.to_k", "attention.norm_q", "attention.norm_k")  # layers of a Z-Image block


@dataclass(frozen=True, slots=True)
class HalfSplit(Derived):
    """A weight of queries or keys with its pairs half a head apart."""

    head_dim: int

    def load(self) -> Tensor:
        return half_split(self.weight.load(), self.head_dim)


def split_rotated(weights: Mapping[str, Weight], head_dim: int) -> dict[str, Weight]:
    """Return a transformer's weights with those of queries and keys half-split."""
    return {name: HalfSplit(weight, head_dim) if is_rotated(name) else weight for name, weight in weights.items()}


def is_rotated(name: str) -> bool:
    """Return True if a transformer's weight has rows that a rotary embedding rotates."""
    return name.removesuffix(".weight").endswith(ROTATED)


def half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Move pairs from neighbouring rows to rows half a head apart, [heads * head_dim, ...]."""
    halves: Tensor = rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
    return halves


def neighbouring(rows: Tensor, head_dim: int) -> Tensor:
    """Invert `half_split`."""
    pairs: Tensor = rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
    return pairs
