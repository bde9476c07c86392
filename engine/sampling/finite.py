"""Checks for NaN and Inf."""

import numpy as np

from engine.array import Array
from engine.errors import NonFiniteOutput


def require_finite(array: Array, what: str) -> None:
    """Check that an array holds no NaN or Inf.

    Raises:
        NonFiniteOutput: it does; the message names the array.
    """
    if not is_finite(array):
        raise NonFiniteOutput(
            f"NaN or Inf in the {what}, so no image is returned; "
            "build the plans with --bf16 or --fp32 if this model leaves FP16's range"
        )


def is_finite(array: Array) -> bool:
    """Return True if an array holds no NaN or Inf. The sum decides, since it allocates nothing."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum()))
