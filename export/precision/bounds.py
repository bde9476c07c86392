"""How large can it get? Bounds for the matrix products of a transformer block that follow from its weights alone.

What RMSNorm returns is, before its weight, at most sqrt(D) long, whatever went in. So |W_j h| is at most sqrt(D) times
the length of W_j times the norm's weight, for every prompt and every step; and so on through the block. What exceeds
FP16 is held at a power of two, which is exact. Knows tensors; not modules, names or graphs.

Two limits. What a fused attention kernel keeps while it sums is its own affair: the bounds hold for its inputs and its
result. And `typical` is a root mean square: where a few channels exceed the rest by 2^20 and the next matrix makes up
for it, the rest lose precision unseen. Nothing is scaled up, so neither is a branch that is tiny.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from export.checkpoint.weights import NORMAL

LIMIT = 65504.0 / 2  # of a bound, after scaling
ROUNDING = 1 + 2.0**-7  # on every bound: FP16 inputs, weights and products are off by 2^-11 each, nine times in a row
IN_OUTPUT = 6  # the most that the output projection's own weights are scaled by
SILU_SLOPE = 1.1  # of silu, the steepest


@dataclass(frozen=True, slots=True)
class Size:
    """The largest that an element of a tensor can be, and the root mean square for inputs of random direction."""

    bound: float
    typical: float

    @staticmethod
    def of(bounds: Tensor, typical: Tensor) -> "Size":
        return Size(bounds.max().item() * ROUNDING, typical.square().mean().sqrt().item())

    def is_held(self, shift: int) -> bool:
        """Whether FP16 holds it, divided by 2^shift, without losing what is typical."""
        in_range = math.isfinite(self.bound) and math.ldexp(self.bound, -shift) <= LIMIT
        return in_range and math.ldexp(self.typical, -shift) >= min(NORMAL, self.typical)


@dataclass(frozen=True, slots=True)
class Modulation:
    """What scales the inputs of a block: the embedding of a grid of timesteps, and how far any other can be off it.

    The embedding is `last` times silu of units that are linear in cosines and sines of the timestep, whose slopes are
    known; so between two points of the grid no unit moves by more than its `drift`.
    """

    conditions: Tensor  # [N, 256]
    drift: Tensor  # [hidden]
    last: Tensor  # [256, hidden]

    @staticmethod
    def over(timesteps: Tensor, frequencies: Tensor, embedded: Tensor, mlp: tuple[Tensor, ...]) -> "Modulation":
        """Of evenly spaced timesteps [N].

        Args:
            frequencies: [128], of `embedded` [N, 256]: cosines, then sines.
            mlp: weight and bias of its two layers.
        """
        w0, b0, w2, b2 = mlp
        conditions = torch.nn.functional.silu(embedded @ w0.T + b0) @ w2.T + b2
        slope = torch.hypot(*w0.chunk(2, dim=1)) @ frequencies
        halfway = (timesteps[1] - timesteps[0]).item() / 2
        return Modulation(conditions, SILU_SLOPE * halfway * slope, w2)

    def largest_scale(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Upper bounds of |1 + scale|, [D], from D rows of adaLN_modulation."""
        on_grid = (1 + self.conditions @ weight.T + bias).abs().amax(0)
        largest: Tensor = on_grid + (weight @ self.last).abs() @ self.drift
        return largest


@dataclass(frozen=True, slots=True)
class ResidualBranch:
    """A branch of a block, from its norm to its last product: true sizes, and the exponents they are held at.

    Its tensors in FP16 are what enters, what is projected from it (queries, keys and values; gate and up), what
    is made of that (values mixed by attention; the gated product), and what is returned.
    """

    entering: Size
    projected: Size
    inner: Size
    returned: Size
    entering_shift: int = 0  # of what is projected, too
    inner_shift: int = 0
    returned_shift: int = 0

    @staticmethod
    def attention(
        norm: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, head_dim: int
    ) -> "ResidualBranch":
        """Of weights: norm [D], projections [heads * head_dim, D], output [D', heads * head_dim]; in FP32."""
        longest = math.sqrt(len(norm))
        query, key, value = query * norm, key * norm, value * norm
        rows = value.norm(dim=1)
        shared = len(query) // len(value)  # query heads per value head
        heads = value.unflatten(0, (-1, head_dim))
        widest = _largest_singular_values(heads)
        mixed = rows.unflatten(0, (-1, head_dim)).repeat_interleave(shared, 0).flatten()
        by_head = output.unflatten(1, (-1, head_dim)).norm(dim=2) @ widest.repeat_interleave(shared)
        returned = torch.minimum(output.abs() @ mixed, by_head)
        projected = torch.cat([query.norm(dim=1), key.norm(dim=1), rows])
        sizes = (
            Size.of(longest * norm.abs(), norm),
            Size.of(longest * projected, projected),
            Size.of(longest * rows, rows),
            Size.of(longest * returned, (output * mixed).norm(dim=1)),
        )
        entering, total = _shift(*sizes[:3]), _shift(sizes[3])
        rest = max(total - entering, 0)
        in_output = max(0, min(rest, _room(output), IN_OUTPUT))
        entering += rest - in_output
        return ResidualBranch(*sizes, entering, entering, entering + in_output)

    @staticmethod
    def feed_forward(norm: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> "ResidualBranch":
        """Of weights: norm [D], gate and up [F, D], down [D', F]; in FP32."""
        longest = math.sqrt(len(norm))
        gate, up = gate * norm, up * norm
        gates, ups = gate.norm(dim=1), up.norm(dim=1)
        product = longest**2 / 2 * (gates * ups + (gate * up).sum(1).abs())  # the most of (p.h)(q.h) on a sphere
        sizes = (
            Size.of(longest * norm.abs(), norm),
            Size.of(longest * torch.cat([gates, ups]), torch.cat([gates, ups])),
            Size.of(product, gates * ups / 2),
            Size.of(down.abs() @ product, (down * gates * ups / 2).norm(dim=1)),
        )
        entering = _shift(*sizes[:2])
        inner = max(entering, _shift(*sizes[2:]))
        return ResidualBranch(*sizes, entering, inner, inner)

    @property
    def unheld(self) -> str | None:
        """What of it FP16 does not hold at these exponents."""
        tensors = {
            "input": (self.entering, self.entering_shift),
            "first product": (self.projected, self.entering_shift),
            "last product's input": (self.inner, self.inner_shift),
            "result": (self.returned, self.returned_shift),
        }
        for name, (size, shift) in tensors.items():
            if not size.is_held(shift):
                return f"its {name}, at 2^{-shift}, is bounded by {size.bound:.0e} and typically {size.typical:.0e}"
        return None


def _largest_singular_values(matrices: Tensor) -> Tensor:
    """[N, rows, columns] -> [N]; Inf where the squares leave FP32."""
    squares = matrices @ matrices.mT
    finite = squares.isfinite().all(dim=(1, 2))
    found = torch.full((len(matrices),), math.inf)
    found[finite] = torch.linalg.eigvalsh(squares[finite])[:, -1].clamp(min=0).sqrt()
    return found


def _shift(*sizes: Size) -> int:
    """The least power of two by which all bounds must be divided to be within LIMIT."""
    largest = max(size.bound for size in sizes)
    return max(0, math.ceil(math.log2(largest / LIMIT))) if math.isfinite(largest) and largest else 0


def _room(weight: Tensor) -> int:
    """How many times a matrix can be halved before what is typical of it is no longer of full precision."""
    typical = weight.square().mean().sqrt().item()
    return math.floor(math.log2(typical / NORMAL)) - 2 if 0 < typical < math.inf else 0
