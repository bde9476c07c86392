"""Bounds of the matrix products in a transformer block that follow from its weights alone.

Before its weight, the output of RMSNorm has a length of at most sqrt(D) for any input. |W_j h| is therefore at most
sqrt(D) times the length of W_j times the norm's weight, for every prompt and every step, and so on through the block.
A tensor that exceeds FP16 is scaled down by a power of two, which is exact. The module knows tensors, not modules,
names or graphs.

Every bound of a product also holds for any part of its sum. Products that are summed in FP16 have two bounds more: the
rounding of a long sum can enlarge it, and fused attention sums P V, with P up to 1, over all keys before it divides.

Limits: `typical` is a root mean square: if a few channels exceed the others by 2^20 and the next matrix compensates for
that, the other channels lose precision undetected, but for values summed in FP16. Activations are never scaled up, so a
branch with tiny values stays tiny.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from export.checkpoint.weights import LOSS, NORMAL

LIMIT = 65504.0 / 2  # largest bound after scaling: half of FP16's largest number
ROUNDING = 1 + 2.0**-7  # margin on every bound for nine successive roundings to FP16, 2^-11 each
IN_OUTPUT = 6  # largest exponent that the output projection's weights are scaled by
SMALLEST = 25  # FP16 rounds its smallest numbers by up to 2^-25
SILU_SLOPE = 1.1  # largest slope of silu
TERMS = 8  # products that a tensor core adds to an FP16 sum before it rounds: A100 (doi:10.7717/peerj-cs.330), RTX 3060


@dataclass(frozen=True, slots=True)
class Magnitude:
    """Magnitudes of a tensor's elements.

    Attributes:
        bound: largest possible magnitude.
        typical: root mean square for inputs of random direction.
    """

    bound: float
    typical: float

    @staticmethod
    def of(bounds: Tensor, typical: Tensor) -> "Magnitude":
        return Magnitude(bounds.max().item() * ROUNDING, typical.square().mean().sqrt().item())

    def summed_in_fp16(self, terms: int) -> "Magnitude":
        """Return the magnitude of a sum of so many products whose running value is rounded to FP16."""
        return Magnitude(self.bound * growth(terms), self.typical)

    def fits_fp16(self, shift: int) -> bool:
        """Return True if FP16 can hold the tensor divided by 2^shift without losing typical values."""
        in_range = math.isfinite(self.bound) and math.ldexp(self.bound, -shift) <= LIMIT
        return in_range and math.ldexp(self.typical, -shift) >= min(NORMAL, self.typical)


@dataclass(frozen=True, slots=True)
class Modulation:
    """Timestep embeddings, which scale the inputs of a block: a grid of them, and bounds in between.

    An embedding is `last` times silu of units that are linear in cosines and sines of the timestep. The slopes of the
    units are known, so between two points of the grid no unit moves by more than its `drift`.

    Attributes:
        conditions: embeddings of the grid, [N, 256].
        drift: largest change of each unit between grid points, [hidden].
        last: weight of the last layer, [256, hidden].
    """

    conditions: Tensor
    drift: Tensor
    last: Tensor

    @staticmethod
    def over(timesteps: Tensor, frequencies: Tensor, embedded: Tensor, mlp: tuple[Tensor, ...]) -> "Modulation":
        """Make the modulation of evenly spaced timesteps [N].

        Args:
            frequencies: frequencies of the embedding, [128].
            embedded: cosines, then sines, of the timesteps at the frequencies, [N, 256].
            mlp: weight and bias of the embedder's two layers.
        """
        w0, b0, w2, b2 = mlp
        conditions = torch.nn.functional.silu(embedded @ w0.T + b0) @ w2.T + b2
        slope = torch.hypot(*w0.chunk(2, dim=1)) @ frequencies
        halfway = (timesteps[1] - timesteps[0]).item() / 2
        return Modulation(conditions, SILU_SLOPE * halfway * slope, w2)

    def largest_scale(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return upper bounds of |1 + scale|, [D], from D rows of adaLN_modulation."""
        on_grid = (1 + self.conditions @ weight.T + bias).abs().amax(0)
        largest: Tensor = on_grid + (weight @ self.last).abs() @ self.drift
        return largest


@dataclass(frozen=True, slots=True)
class ResidualBranch:
    """A residual branch of a block, from its norm to its last product.

    Attributes:
        entering: unscaled magnitude of the normed input.
        projected: of the first products: queries, keys and values; gate and up.
        inner: of the last product's input: values mixed by attention; the gated product.
        returned: of the last product.
        undivided: of the sum of values inside attention, before it is divided by the sum of the softmax; None if that
            is summed in FP32.
        lost: relative error of the result if values are rounded to multiples of FP16's smallest number.
        entering_shift: exponent of the power of two that `entering` and `projected` are divided by.
        inner_shift, returned_shift: the same for `inner` and `undivided`, and for `returned`.
    """

    entering: Magnitude
    projected: Magnitude
    inner: Magnitude
    returned: Magnitude
    entering_shift: int = 0
    inner_shift: int = 0
    returned_shift: int = 0
    undivided: Magnitude | None = None
    lost: float = 0.0

    @staticmethod
    def attention(
        norm: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        head_dim: int,
        keys: int | None = None,
    ) -> "ResidualBranch":
        """Bound an attention branch from its weights in FP32.

        Args:
            norm: [D].
            query, key, value: [heads * head_dim, D]; key and value may have fewer heads.
            output: [D', heads * head_dim].
            keys: largest number of keys of the attention, if products are summed in FP16; None for FP32.
        """
        longest = math.sqrt(len(norm))
        query, key, value = query * norm, key * norm, value * norm
        rows = value.norm(dim=1)
        shared = len(query) // len(value)  # query heads per value head
        heads = value.unflatten(0, (-1, head_dim))
        widest = _largest_singular_values(heads)
        mixed_rows = rows.unflatten(0, (-1, head_dim)).repeat_interleave(shared, 0).flatten()
        by_head = output.unflatten(1, (-1, head_dim)).norm(dim=2) @ widest.repeat_interleave(shared)
        returned = torch.minimum(output.abs() @ mixed_rows, by_head)
        projected = torch.cat([query.norm(dim=1), key.norm(dim=1), rows])
        magnitudes = (
            Magnitude.of(longest * norm.abs(), norm),
            Magnitude.of(longest * projected, projected),
            Magnitude.of(longest * rows, rows),
            Magnitude.of(longest * returned, (output * mixed_rows).norm(dim=1)),
        )
        undivided, lost = None, 0.0
        if keys is not None:
            normed, first, mixed, last = magnitudes
            magnitudes = (normed, first.summed_in_fp16(len(norm)), mixed, last.summed_in_fp16(output.shape[1]))
            undivided = Magnitude(keys * mixed.bound, mixed.typical).summed_in_fp16(keys)
        entering, total = _shift(*magnitudes[:3]), _shift(magnitudes[3])
        rest = max(total - entering, 0)
        in_output = max(0, min(rest, _room(output), IN_OUTPUT))
        entering += rest - in_output
        inner = entering if undivided is None else max(entering, _shift(undivided))
        if inner > entering:
            columns = output.norm(dim=0)
            lost = math.ldexp(columns.norm().item(), inner - SMALLEST) / (columns * mixed_rows).norm().item()
        raised = min(inner - entering, _headroom(output))
        return ResidualBranch(*magnitudes, entering, inner, inner + in_output - raised, undivided, lost)

    @staticmethod
    def feed_forward(
        norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, fp16_sums: bool = False
    ) -> "ResidualBranch":
        """Bound a feed-forward branch from its weights in FP32: norm [D], gate and up [F, D], down [D', F]."""
        longest = math.sqrt(len(norm))
        gate, up = gate * norm, up * norm
        gates, ups = gate.norm(dim=1), up.norm(dim=1)
        product = longest**2 / 2 * (gates * ups + (gate * up).sum(1).abs())  # maximum of (p.h)(q.h) on a sphere
        magnitudes = (
            Magnitude.of(longest * norm.abs(), norm),
            Magnitude.of(longest * torch.cat([gates, ups]), torch.cat([gates, ups])),
            Magnitude.of(product, gates * ups / 2),
            Magnitude.of(down.abs() @ product, (down * gates * ups / 2).norm(dim=1)),
        )
        if fp16_sums:
            normed, projected, inside, returned = magnitudes
            magnitudes = (normed, projected.summed_in_fp16(len(norm)), inside, returned.summed_in_fp16(len(gate)))
        entering = _shift(*magnitudes[:2])
        inner = max(entering, _shift(*magnitudes[2:]))
        return ResidualBranch(*magnitudes, entering, inner, inner)

    @property
    def range_error(self) -> str | None:
        """Reason why FP16 cannot hold the branch at these exponents, or None."""
        tensors = {
            "input": (self.entering, self.entering_shift),
            "first product": (self.projected, self.entering_shift),
            "last product's input": (self.inner, self.inner_shift),
            "sum of values before it is divided": (self.undivided or self.inner, self.inner_shift),
            "result": (self.returned, self.returned_shift),
        }
        for name, (own, shift) in tensors.items():
            if not own.fits_fp16(shift):
                return f"its {name}, scaled by 2^{-shift}, reaches {own.bound:.0e} and is typically {own.typical:.0e}"
        if self.lost > LOSS:
            return f"its values, scaled by 2^-{self.inner_shift}, are so uneven that the result loses {self.lost:.1%}"
        return None


def growth(terms: int) -> float:
    """Return the factor by which rounding can enlarge a running FP16 sum.

    If no exact partial sum exceeds B, no rounded one exceeds B (1 + 2^-11)^n after n roundings.
    """
    return float((1 + 2.0**-11) ** math.ceil(terms / TERMS))


def _largest_singular_values(matrices: Tensor) -> Tensor:
    """Return the largest singular values, [N, rows, columns] -> [N]; Inf where the squares leave FP32."""
    squares = matrices @ matrices.mT
    finite = squares.isfinite().all(dim=(1, 2))
    found = torch.full((len(matrices),), math.inf)
    found[finite] = torch.linalg.eigvalsh(squares[finite])[:, -1].clamp(min=0).sqrt()
    return found


def _shift(*magnitudes: Magnitude) -> int:
    """Return the least exponent of two that brings all bounds within LIMIT."""
    largest = max(magnitude.bound for magnitude in magnitudes)
    return max(0, math.ceil(math.log2(largest / LIMIT))) if math.isfinite(largest) and largest else 0


def _headroom(weight: Tensor) -> int:
    """Return the number of times that a matrix can be doubled within LIMIT."""
    largest = weight.abs().max().item()
    return max(0, math.floor(math.log2(LIMIT / largest))) if 0 < largest < math.inf else 0


def _room(weight: Tensor) -> int:
    """Return the number of times that a matrix can be halved while its typical values keep full FP16 precision."""
    typical = weight.square().mean().sqrt().item()
    return math.floor(math.log2(typical / NORMAL)) - 2 if 0 < typical < math.inf else 0
