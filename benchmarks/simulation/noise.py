"""Random factors of durations."""

import random
from math import log1p, sqrt


def log_normal(rng: random.Random, spread: float) -> float:
    """Return a log-normal factor with mean 1 and a coefficient of variation; 1 if that is 0."""
    if not spread:
        return 1.0
    variance = log1p(spread**2)  # of the logarithm
    return rng.lognormvariate(-variance / 2, sqrt(variance))
