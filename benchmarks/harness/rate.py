"""Rate of answers, from the times at which they ended."""

import statistics
from collections.abc import Sequence


def rate(ended: Sequence[float]) -> float:
    """Return images per second from the times at which images ended.

    The rate is the slope of a linear fit: a count over the interval would depend on which images just fall within it.
    """
    if len(ended) < 2:
        raise RuntimeError(f"{len(ended)} images are too few for a rate; measure for more --seconds")
    return statistics.linear_regression(sorted(ended), range(len(ended))).slope
