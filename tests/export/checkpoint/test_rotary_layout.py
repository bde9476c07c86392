"""The half-split order of queries and keys."""

import pytest
import torch

from export.checkpoint.rotary_layout import half_split, is_rotated, neighbouring
from export.graphs.layers import rotate

HEADS, HEAD_DIM, TOKENS = 3, 16, 5


def test_scores_of_half_split_heads_equal_those_of_complex_rotation() -> None:
    """The original multiplies neighbours, as complex numbers, by cos + i sin; here in float64."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(TOKENS, HEADS * HEAD_DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    angle = torch.rand(TOKENS, HEAD_DIM // 2, generator=generator, dtype=torch.float64) * 6

    def rotated_neighbours(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.view(TOKENS, HEADS, HEAD_DIM // 2, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(2)

    def rotated_halves(x: torch.Tensor) -> torch.Tensor:
        heads = half_split(x.T, HEAD_DIM).T.reshape(1, TOKENS, HEADS, HEAD_DIM)
        return rotate(heads, angle.cos(), angle.sin())[0]

    expected = torch.einsum("qhd,khd->hqk", rotated_neighbours(query), rotated_neighbours(key))
    got = torch.einsum("qhd,khd->hqk", rotated_halves(query), rotated_halves(key))
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_neighbouring_inverts_half_split() -> None:
    rows = torch.arange(HEADS * HEAD_DIM * 2).view(-1, 2)
    assert not torch.equal(half_split(rows, HEAD_DIM), rows)
    assert torch.equal(neighbouring(half_split(rows, HEAD_DIM), HEAD_DIM), rows)


@pytest.mark.parametrize(
    ("name", "rotated"),
    [
        ("layers.0.attention.to_q.weight", True),
        ("layers.0.attention.norm_k.weight", True),
        ("noise_refiner.1.attention.to_k", True),
        ("layers.0.attention.to_v.weight", False),
        ("layers.0.attention_norm1.weight", False),
    ],
)
def test_rotated_weights_are_those_of_queries_and_keys(name: str, rotated: bool) -> None:
    assert is_rotated(name) is rotated
