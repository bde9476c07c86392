"""Merging of low-rank factors into stored weights, on all cores, in the layout in which the weights are stored.

A weight is merged in blocks of rows that fit a core's cache. Knows arrays; not LoRAs or graphs.
"""

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from threadpoolctl import ThreadpoolController

from engine.array import Array
from engine.plan.half import HalfConverter

# Rows of a matrix product, which packs its right factor anew for each block; and numbers of a block converted at once,
# whose three copies fit the second-level cache. Measured by `zimage-bench lora-swap`.
PRODUCT_ROWS = 64
CONVERTED = 1 << 17


@dataclass(frozen=True, slots=True)
class Product:
    """A product of low rank that is added to part of a weight.

    Attributes:
        left: [rows, rank] FP32.
        right: [rank, columns] FP32.
        row, column: the first of each in the weight.
    """

    left: Array
    right: Array
    row: int
    column: int


class Merged:
    """A weight that is being merged by other threads."""

    def __init__(self, array: Array, blocks: Sequence["Future[None]"]) -> None:
        self._array, self._blocks = array, blocks

    def wait(self) -> Array:
        """Return the merged weight."""
        for block in self._blocks:
            block.result()
        return self._array


class Merger:
    """Threads that merge weights. A context manager, in which BLAS has one thread for each of them.

    Args:
        threads: 0 for one for each core that this process may use.
    """

    def __init__(self, threads: int = 0) -> None:
        self._pool = ThreadPoolExecutor(threads or _cores(), thread_name_prefix="merge")
        self._of_thread = threading.local()

    def __enter__(self) -> Self:
        self._blas = ThreadpoolController().limit(limits=1, user_api="blas")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._blas.restore_original_limits()

    def start(self, base: Array, products: Sequence[Product], exponent: int, new_exponent: int) -> Merged:
        """Start to merge a weight: round((base * 2**-exponent + products) * 2**new_exponent), computed in FP32.

        Args:
            base: [rows, columns] or [columns], float16, bfloat16 or float32, scaled by 2**exponent.
            products: cover no number twice; none for [columns].

        Returns:
            The merged weight, of the base's dtype.
        """
        result = np.empty_like(base, subok=False)
        base, merged = np.atleast_2d(base), np.atleast_2d(result)
        scales = math.ldexp(1.0, -exponent), math.ldexp(1.0, new_exponent)

        def merge_rows(first: int) -> None:
            rows = slice(first, min(first + PRODUCT_ROWS, len(base)))
            scratch = self._scratch(base.shape[1])
            scratch.merge(base[rows], _cut(products, rows), scales, merged[rows])

        starts = range(0, len(base), PRODUCT_ROWS)
        return Merged(result, [self._pool.submit(merge_rows, first) for first in starts])

    def _scratch(self, columns: int) -> "_Scratch":
        scratch: _Scratch | None = getattr(self._of_thread, "scratch", None)
        if scratch is None or scratch.columns < columns:
            scratch = self._of_thread.scratch = _Scratch(columns)
        return scratch


class _Scratch:
    """A thread's memory, for weights of up to so many columns."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        size = max(CONVERTED, columns)
        self._single, self._products = np.empty(size, np.float32), np.empty(PRODUCT_ROWS * columns, np.float32)
        self._converter = HalfConverter(size)

    def merge(self, base: Array, products: Sequence[Product], scales: tuple[float, float], merged: Array) -> None:
        """Merge up to PRODUCT_ROWS rows; those of products are counted from the first of them."""
        values = self._multiply(products)
        height = max(1, CONVERTED // base.shape[1])
        for start in range(0, len(base), height):
            rows = base[start : start + height]
            single = self._single[: rows.size].reshape(rows.shape)
            self._widen(rows, single)
            _scale(single, scales[0])
            for product, value in zip(products, values, strict=True):
                begin, end = max(start, product.row), min(start + len(rows), product.row + len(value))
                if begin < end:
                    part = single[begin - start : end - start, product.column : product.column + value.shape[1]]
                    np.add(part, value[begin - product.row : end - product.row], out=part)
            _scale(single, scales[1])
            self._narrow(single, merged[start : start + height])

    def _multiply(self, products: Sequence[Product]) -> list[Array]:
        values, end = [], 0
        for product in products:
            shape = len(product.left), product.right.shape[1]
            value = self._products[end : end + math.prod(shape)].reshape(shape)
            values.append(np.matmul(product.left, product.right, out=value))
            end += value.size
        return values

    def _widen(self, stored: Array, single: Array) -> None:
        if stored.dtype == np.float16:
            self._converter.widen(stored, single)
        else:
            np.copyto(single, stored)

    def _narrow(self, single: Array, stored: Array) -> None:
        if stored.dtype == np.float16:
            self._converter.narrow(single, stored)
        else:
            np.copyto(stored, single, casting="same_kind")


def _cut(products: Sequence[Product], rows: slice) -> list[Product]:
    """Return what these rows of the weight get, counted from the first of them."""
    found = []
    for product in products:
        begin, end = max(rows.start, product.row), min(rows.stop, product.row + len(product.left))
        if begin < end:
            left = product.left[begin - product.row : end - product.row]
            found.append(Product(left, product.right, begin - rows.start, product.column))
    return found


def _scale(values: Array, factor: float) -> None:
    if factor != 1.0:
        np.multiply(values, np.float32(factor), out=values)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
