"""Memory for the tensors of the graphs, allocated once and sized for the largest profile.

Each tensor name has one flat allocation; a view is a window of it in the current shape. Every slot has allocations of
its own for one sample's tensors (`PER_SLOT`). Knows names, shapes and events; not the meaning of the tensors.
`host_memory` and `device_memory` implement the protocol.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.array import Array
from engine.plan.manifest import Manifest, Profile, Range
from engine.plan.shapes import dimensions

Tensor = Any  # an Array on the host, a DeviceTensor on a device

ALIGNMENT = 256  # bytes; TensorRT requires it of addresses
VIEWS = 1024  # cached views; a repeated shape returns the same object, so engines need not rebind
# Tensors that a sample keeps between its steps; the last three only where images are inputs
PER_SLOT = ("latents", "prompt_embeds", "image_latents", "noise", "mask")


class DeviceTensor(NamedTuple):
    """A tensor in device memory. `buffer` is the name of the allocation that it lies in."""

    buffer: str
    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Readback(Protocol):
    """A tensor on its way to the host."""

    def wait(self) -> Array:
        """Return the values. They are valid until the tensor is written again."""
        ...


class TimingEvent(Protocol):
    """A point in the order of enqueued work."""

    def seconds_until(self, later: Any) -> float:
        """Return the seconds to a later event; both must have passed."""
        ...


class Memory(Protocol):
    """The tensors of a pipeline.

    Attributes:
        stream: CUDA stream of its copies and of the engines; 0 on the host.
        slots: samples whose tensors it can keep.
        max_ahead: steps that may be enqueued before the oldest of them is waited for.
    """

    stream: int
    slots: int
    max_ahead: int

    def view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor in a shape; the same object for the same shape."""
        ...

    def row(self, tensor: Tensor, index: int) -> Tensor:
        """Return one sample of a batch, with a batch dimension of 1."""
        ...

    def write(self, name: str, values: Array) -> Tensor:
        """Enqueue a write and return the tensor's view. The caller may change `values` once this returns."""
        ...

    def read(self, tensor: Tensor) -> Readback:
        """Start a copy to the host that does not delay later work."""
        ...

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Enqueue a copy between tensors of one shape."""
        ...

    def prepare_write(self, tensor: Tensor) -> None:
        """Make later writes to the tensor wait until a pending readback has its values."""
        ...

    def record_event(self) -> TimingEvent:
        """Enqueue a timing event."""
        ...

    def synchronize(self) -> None:
        """Wait until nothing is running."""
        ...

    def usage(self) -> tuple[int, int] | None:
        """Return bytes of device memory used by all processes, and in total; None without a device."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def slot_tensor(name: str, index: int) -> str:
    """Return the name of a slot's own tensor, for `Memory.view`."""
    return f"{name}.{index}"


def tensor_bytes(manifest: Manifest, profiles: Sequence[Profile], slots: int = 0) -> dict[str, int]:
    """Return the bytes of each tensor at the largest shape of any profile, those of slots included."""
    return capacity_bytes(capacities(manifest, profiles) | slot_capacities(manifest, profiles, slots))


def layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Place tensors in one block. Return the aligned offset of each, and the size of the block."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def capacities(manifest: Manifest, profiles: Sequence[Profile]) -> dict[str, tuple[int, str]]:
    """Return elements and dtype of each tensor at the largest shape of any profile."""
    found: dict[str, tuple[int, str]] = {}
    for name, graph in manifest.graphs.items():
        for profile in profiles:
            bounds = dimensions(name, profile, manifest.model)
            for spec in (*graph.inputs, *graph.outputs):
                count = math.prod(d if isinstance(d, int) else bounds[d].max for d in spec.shape)
                found[spec.name] = max((count, spec.dtype), found.get(spec.name, (0, spec.dtype)))
    return found


def slot_capacities(manifest: Manifest, profiles: Sequence[Profile], slots: int) -> dict[str, tuple[int, str]]:
    """Return elements and dtype of each slot's tensors, which hold one sample."""
    single = [replace(profile, batch=Range(1, 1, 1)) for profile in profiles]
    found = capacities(manifest, single)
    return {slot_tensor(name, index): found[name] for index in range(slots) for name in PER_SLOT if name in found}


def capacity_bytes(elements: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    """Return the bytes of each tensor from its elements and dtype."""
    return {name: count * np.dtype(dtype).itemsize for name, (count, dtype) in elements.items()}
