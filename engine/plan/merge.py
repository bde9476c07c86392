"""Merging of changes into stored weights, on all cores, in the layout in which the weights are stored.

A weight is merged in blocks of rows that fit a core's cache. Knows arrays; not LoRAs or graphs.
"""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from threadpoolctl import ThreadpoolController

from engine.array import Array
from engine.plan.half import HalfConverter
from engine.processor import usable_cpus

# Rows of a matrix product, which packs its right factor anew for each block; and numbers of a block converted at once,
# whose three copies fit the second-level cache. Measured by `zimage-bench lora-swap`.
PRODUCT_ROWS = 64
CONVERTED = 1 << 17


class Summand(Protocol):
    """A matrix that is added to part of a weight, and computed in blocks of rows.

    Attributes:
        row, column: the first of each in the weight.
    """

    @property
    def row(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...

    def write(self, rows: slice, out: Array) -> None:
        """Write rows of the matrix, counted from its first one, to [rows, columns] FP32."""


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

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left), self.right.shape[1]

    def write(self, rows: slice, out: Array) -> None:
        np.matmul(self.left[rows], self.right, out=out)


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
        self._pool = ThreadPoolExecutor(threads or len(usable_cpus()), thread_name_prefix="merge")
        self._of_thread = threading.local()

    def __enter__(self) -> Self:
        self._blas = ThreadpoolController().limit(limits=1, user_api="blas")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._blas.restore_original_limits()

    def start(self, base: Array, summands: Sequence[Summand], exponent: int, new_exponent: int) -> Merged:
        """Start to merge a weight: round((base * 2**-exponent + summands) * 2**new_exponent), computed in FP32.

        Args:
            base: [rows, columns] or [columns], float16, bfloat16 or float32, scaled by 2**exponent.
            summands: matrices inside the weight; [columns] counts as [1, columns].

        Returns:
            The merged weight, of the base's dtype.
        """
        result = np.empty_like(base, subok=False)
        base, merged = np.atleast_2d(base), np.atleast_2d(result)
        scales = math.ldexp(1.0, -exponent), math.ldexp(1.0, new_exponent)

        def merge_rows(first: int) -> None:
            rows = slice(first, min(first + PRODUCT_ROWS, len(base)))
            scratch = self._scratch(base.shape[1])
            scratch.merge(base[rows], scratch.compute(summands, rows), scales, merged[rows])

        starts = range(0, len(base), PRODUCT_ROWS)
        return Merged(result, [self._pool.submit(merge_rows, first) for first in starts])

    def _scratch(self, columns: int) -> "_Scratch":
        scratch: _Scratch | None = getattr(self._of_thread, "scratch", None)
        if scratch is None or scratch.columns < columns:
            scratch = self._of_thread.scratch = _Scratch(columns)
        return scratch


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a summand, and their place in a block of the weight."""

    value: Array
    row: int
    column: int


class _Scratch:
    """A thread's memory, for weights of up to so many columns."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        size = max(CONVERTED, columns)
        self._single, self._products = np.empty(size, np.float32), np.empty(PRODUCT_ROWS * columns, np.float32)
        self._converter = HalfConverter(size)

    def compute(self, summands: Sequence[Summand], rows: slice) -> list["_Part"]:
        """Compute what up to PRODUCT_ROWS rows of the weight get."""
        parts, end = [], 0
        for summand in summands:
            height, width = summand.shape
            begin, stop = max(rows.start, summand.row), min(rows.stop, summand.row + height)
            if begin >= stop:
                continue
            size = (stop - begin) * width
            # summands that overlap may need more than the scratch has
            space = (
                self._products[end : end + size] if end + size <= self._products.size else np.empty(size, np.float32)
            )
            value = space.reshape(stop - begin, width)
            summand.write(slice(begin - summand.row, stop - summand.row), value)
            parts.append(_Part(value, begin - rows.start, summand.column))
            end += size
        return parts

    def merge(self, base: Array, parts: Sequence["_Part"], scales: tuple[float, float], merged: Array) -> None:
        """Merge up to PRODUCT_ROWS rows; those of parts are counted from the first of them."""
        height = max(1, CONVERTED // base.shape[1])
        for start in range(0, len(base), height):
            rows = base[start : start + height]
            single = self._single[: rows.size].reshape(rows.shape)
            self._widen(rows, single)
            _scale(single, scales[0])
            for part in parts:
                begin, end = max(start, part.row), min(start + len(rows), part.row + len(part.value))
                if begin < end:
                    place = single[begin - start : end - start, part.column : part.column + part.value.shape[1]]
                    np.add(place, part.value[begin - part.row : end - part.row], out=place)
            _scale(single, scales[1])
            self._narrow(single, merged[start : start + height])

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


def _scale(values: Array, factor: float) -> None:
    if factor != 1.0:
        np.multiply(values, np.float32(factor), out=values)
