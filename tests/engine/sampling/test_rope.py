"""Rotary tables equal those that DiffSynth's transformer computes from its position ids."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffsynth.models.z_image_dit import RopeEmbedder, ZImageDiT
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan.manifest import Rope, padded
from engine.sampling.rope import tables
from nano.layout import MINIATURE, transformer_config

TURBO = Rope(256.0, (32, 48, 48), (1536, 512, 512))
SMALL = Rope(256.0, (8, 12, 12), (1536, 512, 512))
TOLERANCE = 1e-6  # absolute, on values up to 1: the angles are equal to the bit, their cosines to the last place

with torch.device("meta"):
    MODEL = ZImageDiT(**transformer_config(MINIATURE))  # its position ids depend on no size of its own
EMBEDDERS = {rope: RopeEmbedder(**asdict(rope)) for rope in (TURBO, SMALL)}


def diffsynth_tables(rope: Rope, rows: int, columns: int, words: int) -> np.ndarray:
    """Return [image padded + prompt padded, head_dim / 2] complex, in the order of the unified sequence."""
    image, prompt_embeds = torch.zeros(16, 1, 2 * rows, 2 * columns), torch.zeros(words, 8)
    _, _, positions = MODEL.patchify_and_embed([image], [prompt_embeds])
    return EMBEDDERS[rope](torch.cat([positions["x_pos_ids"][0], positions["cap_pos_ids"][0]])).numpy()


def check(rope: Rope, rows: int, columns: int, words: int) -> None:
    cos, sin = tables(rope, rows, columns, padded(words))
    assert cos.shape == sin.shape == (padded(rows * columns) + padded(words), sum(rope.axes_dims) // 2)
    assert cos.dtype == sin.dtype == np.float32
    theirs = diffsynth_tables(rope, rows, columns, words)
    np.testing.assert_allclose(cos, theirs.real, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(sin, theirs.imag, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rope", [TURBO, SMALL])
@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (64, 64, 77),  # 1024 x 1024
        (128, 128, 512),  # 2048 x 2048 and the longest prompt
        (4, 4, 1),  # fewer tokens than one multiple
        (17, 5, 33),
        (5, 17, 32),  # the transposed image
        (1, 512, 31),  # the longest axis
    ],
)
def test_values_equal_diffsynths(rope: Rope, rows: int, columns: int, words: int) -> None:
    check(rope, rows, columns, words)


@settings(deadline=None)
@given(rows=st.integers(1, 48), columns=st.integers(1, 48), words=st.integers(1, 512))
def test_tables_of_any_size_and_prompt_equal_diffsynths(rows: int, columns: int, words: int) -> None:
    check(SMALL, rows, columns, words)


def test_rows_and_columns_are_not_swapped() -> None:
    tall, wide = tables(TURBO, 8, 4, 32)[1], tables(TURBO, 4, 8, 32)[1]
    assert not np.array_equal(tall, wide)
