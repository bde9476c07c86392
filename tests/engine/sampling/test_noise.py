"""Noise equals torch's, so a seed gives diffusers' image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.noise import Generator, randn

TOLERANCE = 1e-6  # absolute; measured 4.8e-7. torch's own AVX2 and plain kernels are up to 2e-6 apart
PLAIN = torch.backends.cpu.get_cpu_capability() == "DEFAULT"

SEEDS = [0, 1, 7, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63 - 1, 2**64 - 1, -1, -(2**63)]
LATENTS = [(1, 16, 8, 8), (1, 16, 34, 10), (1, 16, 128, 128), (1, 16, 96, 160), (2, 16, 16, 16)]
ODD = [(16,), (17,), (31,), (32,), (33,), (3, 7, 5), (1000003,)]  # torch generates the last 16 of them twice


def torch_randn(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("shape", LATENTS + ODD)
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_equals_torchs(seed: int, shape: tuple[int, ...]) -> None:
    ours = randn(seed, shape)
    assert (ours.dtype, ours.shape) == (np.float32, shape)
    np.testing.assert_allclose(ours, torch_randn(seed, shape), rtol=0, atol=TOLERANCE)


@settings(deadline=None)
@given(seed=st.integers(-(2**63), 2**64 - 1), count=st.integers(16, 600))
def test_noise_of_any_seed_and_length_equals_torchs(seed: int, count: int) -> None:
    np.testing.assert_allclose(randn(seed, (count,)), torch_randn(seed, (count,)), rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(PLAIN, reason="torch's kernels without vector instructions round another way")
@pytest.mark.parametrize("seed", SEEDS)
def test_most_values_are_bit_equal_to_torchs(seed: int) -> None:
    """Measured 86 %."""
    shape = (1, 16, 128, 128)
    assert np.mean(randn(seed, shape) == torch_randn(seed, shape)) > 0.5


def test_only_the_low_32_bits_of_a_seed_count() -> None:
    assert np.array_equal(randn(7, (64,)), randn(2**32 + 7, (64,)))
    assert not np.array_equal(randn(7, (64,)), randn(8, (64,)))


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 16, 34, 10), (1, 16, 64, 96), (33,), (1000003,)])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**64 - 1])
def test_consecutive_calls_of_a_generator_equal_torchs(seed: int, shape: tuple[int, ...]) -> None:
    """diffusers draws the noise of an init image after a sample of the VAE's posterior, from one generator."""
    ours, theirs = Generator(seed), torch.Generator().manual_seed(seed)
    for _ in range(3):
        expected = torch.randn(shape, generator=theirs).numpy()
        np.testing.assert_allclose(ours.randn(shape), expected, rtol=0, atol=TOLERANCE)


def test_values_are_normally_distributed() -> None:
    values = randn(3, (1, 16, 128, 128))
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def test_fewer_than_16_values_fail_an_assertion() -> None:
    with pytest.raises(AssertionError, match="fewer than 16"):
        randn(0, (15,))
