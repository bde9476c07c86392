"""Every array that a picture needs, allocated once and sized for the largest profile."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from engine.manifest import Manifest
from engine.shapes import dimensions

Array = np.ndarray[Any, Any]


class Buffers:
    """One flat allocation per tensor name of the three graphs; `view` is a window of it in the shape of the moment.

    `latents` and `latents_next` are as large as each other and take turns as the denoiser's input and output.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._flat = {name: np.zeros(count, dtype) for name, (count, dtype) in _capacities(manifest).items()}
        self.view = lru_cache(maxsize=256)(self._view)  # the same array object again: engines rebind only new ones

    def _view(self, name: str, shape: tuple[int, ...]) -> Array:
        return self._flat[name][: math.prod(shape)].reshape(shape)


def _capacities(manifest: Manifest) -> dict[str, tuple[int, str]]:
    """Elements and dtype of each tensor at the largest shape of any profile."""
    capacities: dict[str, tuple[int, str]] = {}
    for name, graph in manifest.graphs.items():
        for profile in manifest.profiles:
            bounds = dimensions(name, profile, manifest.model)
            for spec in (*graph.inputs, *graph.outputs):
                count = math.prod(d if isinstance(d, int) else bounds[d].max for d in spec.shape)
                capacities[spec.name] = max((count, spec.dtype), capacities.get(spec.name, (0, spec.dtype)))
    return capacities
