"""Numbers as readers want them: few digits, units, and a dash for a missing value."""

import math
from collections.abc import Sequence

MISSING = "–"
SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SUFFIXES_FROM = 10_000  # smaller numbers are written in full
LARGEST, SMALLEST = 1e15, 1e-4  # numbers beyond have an exponent


def compact(value: float | None) -> str:
    """Format a number with at most three significant digits below 1,000, and a suffix from 10,000 on."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size >= LARGEST or 0 < size < SMALLEST:
        return f"{value:.3g}"
    if size >= SUFFIXES_FROM:
        factor, suffix = next(pair for pair in SUFFIXES if size >= pair[0])
        return f"{_digits(value / factor)}{suffix}"
    return f"{value:,.0f}" if size >= 999.5 else _digits(value)


def seconds(value: float | None) -> str:
    """Format a duration in ms below 1 s, in seconds below 10 minutes, in minutes above."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 0.9995:
        return f"{_digits(value * 1e3)} ms"
    return f"{_digits(value)} s" if value < 600 else f"{compact(value / 60)} min"


def percent(value: float | None) -> str:
    """Format a percentage so that only 100 is written as 100 %."""
    if value is None:
        return MISSING
    if value == 100:
        return "100 %"
    return f"{min(value, 99.99):.2f} %" if value > 99.9 else f"{value:.1f} %"


def whole(value: float | None) -> str:
    """Format a count with commas."""
    return MISSING if value is None else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """Format megabytes."""
    return MISSING if value is None else f"{value:,.0f} MB"


def watts(value: float | None) -> str:
    """Format watts."""
    return MISSING if value is None else f"{value:.0f} W"


def joined(words: Sequence[str]) -> str:
    """Join words as in a sentence: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _digits(value: float) -> str:
    """Format a number below 1,000 with three significant digits, without an exponent and without trailing zeros."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
