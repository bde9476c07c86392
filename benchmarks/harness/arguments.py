"""Types of command-line numbers, for argparse: a wrong one ends the command before it measures anything."""

import argparse
import math
from collections.abc import Callable


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    return _whole(text, 1)


def count_or_zero(text: str) -> int:
    """Read a whole number of at least 0."""
    return _whole(text, 0)


def positive(text: str) -> float:
    """Read a finite number above 0."""
    return _number(text, "above 0", lambda number: number > 0)


def positive_or_zero(text: str) -> float:
    """Read a finite number of at least 0."""
    return _number(text, "of at least 0", lambda number: number >= 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return number


def _number(text: str, what: str, is_right: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and is_right(number)):
        raise argparse.ArgumentTypeError(f"must be a finite number {what}, got {text!r}")
    return number
