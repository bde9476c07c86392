"""The type of numpy arrays in annotations."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
