"""Merging of low-rank factors, and FP16, against numpy."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from engine.plan.half import HalfConverter
from engine.plan.merge import PRODUCT_ROWS, Merger, Product


def test_every_half_is_widened_as_numpy_does() -> None:
    """The second time most are ordinary numbers, which take the other way."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.abs(every[np.isfinite(every)])
    for halves in (every, np.concatenate([every, *[finite[finite > 1e-4]] * 9])):
        single = np.empty(halves.shape, np.float32)
        HalfConverter(halves.size).widen(halves, single)
        assert np.array_equal(single.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def near_halves() -> np.ndarray:
    """Each half, and its neighbours in FP32 around it and around the middle to the next."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.int32)
    offsets = np.array([-1, 0, 1, 0x0FFF, 0x1000, 0x1001], np.int32)
    near: np.ndarray = (every[:, None] + offsets).ravel().view(np.float32)
    return near


def test_singles_are_narrowed_as_numpy_does() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    ordinary = np.float32(0.02) * np.random.default_rng(1).standard_normal(1 << 22, np.float32)
    mixed = np.concatenate([near_halves(), ordinary])  # so few exceptions that they are the smaller part
    for singles in (near_halves(), mixed, bits.view(np.float32)):
        half = np.empty(singles.shape, np.float16)
        HalfConverter(singles.size).narrow(singles, half)
        with np.errstate(all="ignore"):
            expected = singles.astype(np.float16)
        assert np.array_equal(half.view(np.uint16), expected.view(np.uint16))


ROWS, COLUMNS = 3 * PRODUCT_ROWS + 3, 129


def merge_plainly(base: np.ndarray, products: Sequence[Product], exponent: int, new_exponent: int) -> np.ndarray:
    merged = base.astype(np.float32) * np.float32(2.0**-exponent)
    for product in products:
        added = product.left @ product.right
        rows = slice(product.row, product.row + len(added))
        merged[rows, product.column : product.column + added.shape[1]] += added
    return (merged * np.float32(2.0**new_exponent)).astype(base.dtype)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("rank", [1, 16, 64])
def test_blocks_give_the_whole_weight_and_the_same_bits_on_any_number_of_threads(dtype: type, rank: int) -> None:
    """Joined weights: parts by rows or, transposed, by columns; one part without factors.

    BLAS sums in another order in blocks of few rows, so a number may be rounded the other way: one place of its dtype.
    """
    rng = np.random.default_rng(rank)
    base = (0.02 * rng.standard_normal((ROWS, COLUMNS), np.float32)).astype(dtype)

    def factor(*shape: int) -> np.ndarray:
        return np.float32(0.05) * rng.standard_normal(shape, np.float32)

    part, third = ROWS // 3, COLUMNS // 3
    by_rows = [Product(factor(part, rank), factor(rank, COLUMNS), row, 0) for row in (0, 2 * part)]
    by_columns = [Product(factor(rank, ROWS).T, factor(third, rank).T, 0, column) for column in (third, 2 * third)]
    place = 2.0 * float(ml_dtypes.finfo(dtype).eps)
    with Merger(1) as one, Merger(4) as four:
        for products in (by_rows, by_columns, []):
            merged = one.start(base, products, 2, -1).wait()
            expected = merge_plainly(base, products, 2, -1)
            np.testing.assert_allclose(merged.astype(float), expected.astype(float), rtol=place, atol=1e-7)
            assert np.mean(merged != expected) < 1e-3 or dtype is np.float32
            assert np.array_equal(four.start(base, products, 2, -1).wait().view(np.uint8), merged.view(np.uint8))


def test_weight_of_one_dimension_is_scaled() -> None:
    base = np.arange(5, dtype=np.float16)
    with Merger(1) as merger:
        merged = merger.start(base, [], 1, 3).wait()
    assert np.array_equal(merged, 4 * base) and merged.shape == base.shape


def test_error_in_a_thread_is_raised() -> None:
    unfit = Product(np.zeros((2, 1), np.float32), np.zeros((2, 2), np.float32), 0, 0)
    with Merger(1) as merger, pytest.raises(ValueError, match="matmul"):
        merger.start(np.zeros((2, 2), np.float16), [unfit], 0, 0).wait()


def test_blas_has_one_thread_while_weights_are_merged() -> None:
    """Products on all cores wait for each other inside BLAS."""

    def threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = threads()
    with Merger(2):
        assert set(threads()) == {1}
    assert threads() == before
