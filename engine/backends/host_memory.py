"""Memory on the host: numpy arrays."""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from engine.array import Array
from engine.backends.memory import VIEWS, Tensor, capacities, slot_capacities
from engine.plan.manifest import Manifest, Profile


class HostMemory:
    """`Memory` as numpy arrays.

    A readback is the tensor itself. Its values are copied only if the tensor is written before they were taken.
    """

    stream = 0
    max_ahead = 0

    def __init__(self, manifest: Manifest, profiles: Sequence[Profile], slots: int = 0) -> None:
        self.slots = slots
        elements = capacities(manifest, profiles) | slot_capacities(manifest, profiles, slots)
        self._flat = {name: np.zeros(count, dtype) for name, (count, dtype) in elements.items()}
        self._readbacks: dict[int, _HostReadback] = {}  # by id of the allocation: may not have been waited for
        self.view = lru_cache(maxsize=VIEWS)(self._view)

    def row(self, tensor: Tensor, index: int) -> Array:
        row: Array = tensor[index : index + 1]
        return row

    def write(self, name: str, values: Array) -> Array:
        view = self.view(name, values.shape)
        self.prepare_write(view)
        view[...] = values
        return view

    def read(self, tensor: Tensor) -> "_HostReadback":
        self.prepare_write(tensor)
        readback = self._readbacks[id(tensor.base)] = _HostReadback(tensor)
        return readback

    def copy(self, to: Tensor, source: Tensor) -> None:
        self.prepare_write(to)
        to[...] = source

    def prepare_write(self, tensor: Tensor) -> None:
        readback = self._readbacks.pop(id(tensor.base), None)
        if readback is not None:
            readback.detach()

    def record_event(self) -> "_HostEvent":
        return _HostEvent(time.perf_counter())

    def synchronize(self) -> None:
        pass

    def usage(self) -> None:
        return None

    def close(self) -> None:
        self.view.cache_clear()
        self._flat.clear()

    def _view(self, name: str, shape: tuple[int, ...]) -> Array:
        return self._flat[name][: math.prod(shape)].reshape(shape)


class _HostReadback:
    """Values that lie in their tensor until they are waited for or detached."""

    def __init__(self, values: Array) -> None:
        self._values, self._is_taken = values, False

    def wait(self) -> Array:
        self._is_taken = True
        return self._values

    def detach(self) -> None:
        """Copy the values, unless they were taken."""
        if not self._is_taken:
            self._values = self._values.copy()


class _HostEvent(NamedTuple):
    seconds: float

    def seconds_until(self, later: "_HostEvent") -> float:
        return later.seconds - self.seconds
