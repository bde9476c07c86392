"""Axes of charts: from values to pixels, and the ticks that a reader expects. They draw nothing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

TICKS = 5  # about as many on a linear axis
MANTISSAS = (1, 2, 5)
MOST_TICKS = 8  # on a logarithmic axis
FULL_DECADES = 2.4  # a logarithmic axis over more decades has one tick for each


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear or logarithmic axis between two pixels.

    Attributes:
        low, high: values at `start` and at `end`, which are pixels.
        ticks: values that get a label, ascending.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[float, ...]

    @classmethod
    def linear(
        cls, values: Iterable[float], start: float, end: float, ticks: Sequence[float] = (), *, is_tight: bool = False
    ) -> Self:
        """Return an axis from 0, or from the least negative tick below all values.

        Args:
            ticks: ticks in place of round numbers; the axis ends at the last value then.
            is_tight: end at the last value, not at a tick above it.
        """
        found = [0.0, *values, *ticks]
        lowest, highest = min(found), max(found)
        if lowest == highest:
            highest = 1.0
        if ticks:
            return cls(lowest, highest, start, end, False, tuple(ticks))
        step = _round_step((highest - lowest) / TICKS)
        first, last = math.floor(lowest / step), math.ceil(highest / step - 1e-9)
        marks = tuple(number * step for number in range(first, last + 1))
        if is_tight:
            return cls(lowest, highest, start, end, False, tuple(mark for mark in marks if lowest <= mark <= highest))
        return cls(marks[0], marks[-1], start, end, False, marks)

    @classmethod
    def log(cls, values: Iterable[float], start: float, end: float) -> Self:
        """Return an axis between the round numbers (1, 2, 5 times a power of ten) around the positive values."""
        found = [value for value in values if value > 0] or [1.0]
        marks = _round_numbers(min(found), max(found))
        decades = math.log10(marks[-1] / marks[0])
        shown = marks if decades <= FULL_DECADES else [mark for mark in marks if _mantissa(mark) == 1]
        every = math.ceil(len(shown) / MOST_TICKS)
        return cls(marks[0], marks[-1], start, end, True, tuple(shown[::every]))

    def place(self, value: float) -> float:
        """Return the pixel of a value that `is_drawn`."""
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def is_drawn(value: float | None, *, is_log: bool) -> bool:
    """Tell whether a value has a place: it is a finite number, and positive on a logarithmic axis."""
    return value is not None and math.isfinite(value) and (value > 0 or not is_log)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least * (1 - 1e-9))


def _round_numbers(lowest: float, highest: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten from the last below `lowest` to the first above `highest`; at least two."""
    found: list[float] = []
    for exponent in count(math.floor(math.log10(lowest))):
        for mantissa in MANTISSAS:
            value = float(f"{mantissa}e{exponent}")
            if value <= lowest:
                found = [value]
            else:
                found.append(value)
            if value >= highest and len(found) > 1:
                return found
    raise AssertionError("unreachable: count() does not end")


def _mantissa(value: float) -> int:
    return round(value / 10.0 ** math.floor(math.log10(value) + 1e-9))
