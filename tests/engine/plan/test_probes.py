"""Distances from expected outputs: of the whole, of the worst row, and of the scale."""

import math
from pathlib import Path

import numpy as np
import pytest

from engine.plan.probes import PROBES_FILE, Distance, rows, write

RNG = np.random.default_rng(0)
SHAPES = {
    "tokens": ((2, 3, 40), 6),
    "latents": ((2, 16, 4, 6), 2 * 2 * 3),
    "image": ((1, 32, 48, 3), 2 * 3),
    "numbers": ((4,), 4),
}


@pytest.mark.parametrize(("shape", "count"), SHAPES.values(), ids=SHAPES)
def test_every_element_is_in_one_row(shape: tuple[int, ...], count: int) -> None:
    numbered = np.arange(math.prod(shape)).reshape(shape)
    split = rows(numbered)
    assert split.shape == (count, math.prod(shape) // count)
    assert sorted(split.flat) == list(range(numbered.size))


def test_rows_are_tokens() -> None:
    latents, image = np.zeros((1, 16, 4, 6)), np.zeros((1, 32, 48, 3))
    latents[0, :, 2:4, 4:6] = 1
    image[0, 16:32, 32:48] = 1
    for tensor in (latents, image):
        assert rows(tensor).all(axis=1).tolist() == [False] * 5 + [True]


def test_equal_tensors_have_no_distance() -> None:
    tensor = RNG.standard_normal((2, 8, 40), np.float32)
    assert Distance.between(tensor, tensor) == Distance(0.0, 0.0, 1.0)


def test_scaled_tensor_has_its_gain() -> None:
    tensor = RNG.standard_normal((2, 8, 40), np.float32)
    found = Distance.between(1.05 * tensor, tensor)
    assert found.whole == pytest.approx(0.05, rel=1e-5)
    assert found.row == pytest.approx(0.05, rel=0.5)
    assert found.gain == pytest.approx(1.05, rel=1e-5)


def test_single_number_has_a_distance_but_no_gain() -> None:
    """Rounding has no direction in many numbers, but in one it has."""
    found = Distance.between(np.array([102], np.float32), np.array([100], np.float32))
    assert found == Distance(pytest.approx(0.02), pytest.approx(0.02), 1.0)


def test_one_wrong_row_shows_in_the_worst_row_more_than_in_the_whole() -> None:
    tensor = RNG.standard_normal((1, 400, 40), np.float32)
    wrong = tensor.copy()
    wrong[0, 7] = tensor[0, 8]
    found = Distance.between(wrong, tensor)
    assert found.whole < 0.1 and found.row > 1 and abs(found.gain - 1) < 0.01


def test_error_of_a_short_row_counts_against_the_median_row() -> None:
    tensor = np.ones((1, 9, 40), np.float32)
    tensor[0, 0] = 1e-6
    wrong = tensor.copy()
    wrong[0, 0] = 2e-6
    assert Distance.between(wrong, tensor).row < 1e-5


def test_integers_may_round_to_the_next_level() -> None:
    pixels = RNG.integers(0, 255, (1, 32, 32, 3)).astype(np.uint8)
    assert Distance.between(pixels + 1, pixels).whole == 0
    darker = np.where(pixels >= 3, pixels - 3, pixels)
    assert 0.01 < Distance.between(darker, pixels).whole < 0.03


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_value_that_is_not_finite_is_no_small_distance(value: float) -> None:
    tensor = RNG.standard_normal((1, 8, 40), np.float32)
    wrong = tensor.copy()
    wrong[0, 0, 0] = value
    assert not Distance.between(wrong, tensor).whole <= 1e9


def test_expected_zeros_are_measured_too() -> None:
    zeros = np.zeros((1, 8, 40), np.float32)
    assert Distance.between(zeros, zeros).whole == 0
    assert Distance.between(zeros + 1, zeros).whole > 1


def test_file_of_probes_has_the_mode_of_other_files(tmp_path: Path) -> None:
    """The user that serves plans may be another than the one that built them."""
    write(tmp_path, {"a": np.zeros(3, np.float32)})
    (tmp_path / "other").touch()
    assert (tmp_path / PROBES_FILE).stat().st_mode == (tmp_path / "other").stat().st_mode
