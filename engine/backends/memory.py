"""Every tensor that an image needs, allocated once and sized for the largest profile: on the host, or on a device.

One flat allocation per tensor name of the three graphs; a view is a window of it in the shape of the moment. Beside
them stand the slots of `EngineLoop`: latents and prompt of one image each. Knows streams and events; not what the
tensors mean.
"""

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np

from engine.backends.cuda import Cuda
from engine.plan.manifest import Manifest, Profile, Range
from engine.plan.shapes import dimensions

Array = np.ndarray[Any, Any]
Tensor = Any  # what engines bind: an Array, or a DeviceTensor

ALIGNMENT = 256  # bytes, what TensorRT asks of addresses
PINNED_COPIES = 2  # page-locked copies of a tensor: the host is at most one step ahead of the device
VIEWS = 256  # kept, so that the same shape is the same object and engines rebind only what is new
EVENTS = 16  # three passes have three each, two decodings two, and some to spare; besides, two of each of a batch
PER_SLOT = ("latents", "prompt_embeds")  # what an image keeps between its steps


class DeviceTensor(NamedTuple):
    """A tensor in device memory. `buffer` is the name of the allocation that it lies in."""

    buffer: str
    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Reading(Protocol):
    """A tensor on its way to the host."""

    def wait(self) -> Array:
        """Its values, valid until the same buffer has been read SLOTS times more."""
        ...


class TimingEvent(Protocol):
    """A moment in the order of what is enqueued."""

    def seconds_until(self, later: Any) -> float:
        """Both must have passed."""
        ...


class Memory(Protocol):
    """Where the tensors of a pipeline are. `stream` is what its copies and its engines are enqueued on."""

    stream: int
    slots: int  # images whose latents and prompt it can keep
    ahead: int  # steps that may be enqueued before the first of them is waited for

    def view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor in a shape; the same object for the same shape."""
        ...

    def row(self, tensor: Tensor, index: int) -> Tensor:
        """One sample of a batch, with a batch dimension of 1."""
        ...

    def write(self, name: str, values: Array) -> Tensor:
        """Enqueues values into the tensor; its view in their shape. They may be changed as soon as this returns."""
        ...

    def read(self, tensor: Tensor) -> Reading:
        """Starts a copy to the host, beside what is enqueued afterwards."""
        ...

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Enqueues a copy between tensors of one shape."""
        ...

    def claim(self, tensor: Tensor) -> None:
        """Lets what is enqueued from now on write the tensor: not before it was read."""
        ...

    def record_event(self) -> TimingEvent: ...

    def synchronize(self) -> None:
        """Waits until nothing is running."""
        ...

    def usage(self) -> tuple[int, int] | None:
        """Bytes of the device's memory that are taken, by whomever, and all there are; None without a device."""
        ...

    def close(self) -> None: ...


class HostMemory:
    """numpy arrays. A reading is the tensor itself, and a copy of it only if it is needed again before it is taken."""

    stream = 0
    ahead = 0

    def __init__(self, manifest: Manifest, profiles: Sequence[Profile], slots: int = 0) -> None:
        self.slots = slots
        sizes = _capacities(manifest, profiles) | _slot_capacities(manifest, profiles, slots)
        self._flat = {name: np.zeros(count, dtype) for name, (count, dtype) in sizes.items()}
        self._read_last: dict[
            int, _HostReading
        ] = {}  # id of the allocation -> what may still have to be taken out of it
        self.view = lru_cache(maxsize=VIEWS)(self._view)

    def row(self, tensor: Tensor, index: int) -> Array:
        one: Array = tensor[index : index + 1]
        return one

    def write(self, name: str, values: Array) -> Array:
        view = self.view(name, values.shape)
        self.claim(view)
        view[...] = values
        return view

    def read(self, tensor: Tensor) -> "_HostReading":
        self.claim(tensor)
        here = self._read_last[id(tensor.base)] = _HostReading(tensor)
        return here

    def copy(self, to: Tensor, source: Tensor) -> None:
        self.claim(to)
        to[...] = source

    def claim(self, tensor: Tensor) -> None:
        here = self._read_last.pop(id(tensor.base), None)
        if here is not None:
            here.keep()

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


class _HostReading:
    """Values that lie in a tensor until they are taken, or kept."""

    def __init__(self, values: Array) -> None:
        self._values, self._taken = values, False

    def wait(self) -> Array:
        self._taken = True
        return self._values

    def keep(self) -> None:
        if not self._taken:
            self._values = self._values.copy()


class _HostEvent(NamedTuple):
    seconds: float

    def seconds_until(self, later: "_HostEvent") -> float:
        return later.seconds - self.seconds


class DeviceMemory:
    """One block of device memory, and one of page-locked host memory that copies go through.

    Copies to the device are enqueued on `stream`; copies to the host on a stream of their own, so that the next
    image's steps do not wait for them.
    """

    ahead = 1

    def __init__(self, cuda: Cuda, manifest: Manifest, profiles: Sequence[Profile], slots: int = 0) -> None:
        self._cuda, self.slots = cuda, slots
        shared, slotted = _capacities(manifest, profiles), _slot_capacities(manifest, profiles, slots)
        self._dtypes = {name: dtype for name, (_, dtype) in (shared | slotted).items()}
        offsets, size = layout(_bytes(shared | slotted))
        host_offsets, host_size = layout(_bytes(shared))  # slots are filled from the others
        with ExitStack() as owned:
            self.stream, self._copies = (_own(owned, cuda.create_stream(), cuda.destroy_stream) for _ in range(2))
            device = _own(owned, cuda.allocate(size), cuda.free)
            host = _own(owned, cuda.allocate_host(PINNED_COPIES * host_size), cuda.free_host)
            marks = EVENTS + 2 * max(profile.batch.max for profile in profiles)
            events = iter(
                [
                    _own(owned, cuda.create_event(), cuda.destroy_event)
                    for _ in range(PINNED_COPIES * len(host_offsets) + marks)
                ]
            )
            self._owned = owned.pop_all()
        self._addresses = {name: device + offset for name, offset in offsets.items()}
        self._pinned = {
            name: cycle(
                [_PinnedBuffer(cuda, host + turn * host_size + at, next(events)) for turn in range(PINNED_COPIES)]
            )
            for name, at in host_offsets.items()
        }
        self._marks = cycle([_CudaEvent(cuda, event) for event in events])
        self._read_last: dict[str, _PinnedBuffer] = {}  # buffer -> the copy to the host that may still be running
        self.view = lru_cache(maxsize=VIEWS)(self._view)

    def row(self, tensor: DeviceTensor, index: int) -> DeviceTensor:
        shape = (1, *tensor.shape[1:])
        address = tensor.address + index * tensor.nbytes // tensor.shape[0]
        return DeviceTensor(tensor.buffer, address, shape, tensor.dtype)

    def write(self, name: str, values: Array) -> DeviceTensor:
        tensor: DeviceTensor = self.view(name, values.shape)
        self.claim(tensor)
        slot = next(self._pinned[name])
        slot.wait()  # until the copy before the last has left
        slot.array(tensor)[...] = values
        self._cuda.copy(tensor.address, slot.address, tensor.nbytes, self.stream)
        slot.record(self.stream)
        return tensor

    def read(self, tensor: DeviceTensor) -> "_DeviceReading":
        slot = next(self._pinned[tensor.buffer])
        slot.wait()
        self._cuda.record(slot.done, self.stream)  # for the moment it is when the values are there
        self._cuda.make_wait(self._copies, slot.done)
        self._cuda.copy(slot.address, tensor.address, tensor.nbytes, self._copies)
        slot.record(self._copies)
        self._read_last[tensor.buffer] = slot
        return _DeviceReading(slot, tensor)

    def copy(self, to: DeviceTensor, source: DeviceTensor) -> None:
        assert to.shape == source.shape and to.dtype == source.dtype
        self.claim(to)
        self._cuda.copy(to.address, source.address, source.nbytes, self.stream)

    def claim(self, tensor: DeviceTensor) -> None:
        slot = self._read_last.pop(tensor.buffer, None)
        if slot is not None:
            self._cuda.make_wait(self.stream, slot.done)

    def record_event(self) -> "_CudaEvent":
        mark = next(self._marks)
        self._cuda.record(mark.event, self.stream)
        return mark

    def synchronize(self) -> None:
        for stream in (self.stream, self._copies):
            self._cuda.synchronize(stream)

    def usage(self) -> tuple[int, int]:
        free, total = self._cuda.memory_info()
        return total - free, total

    def close(self) -> None:
        """Frees everything; what is running is waited for."""
        with self._owned:
            self.synchronize()

    def _view(self, name: str, shape: tuple[int, ...]) -> DeviceTensor:
        return DeviceTensor(name, self._addresses[name], shape, self._dtypes[name])


class _PinnedBuffer:
    """A place in page-locked memory, and when what was last enqueued on it is done."""

    def __init__(self, cuda: Cuda, address: int, done: int) -> None:
        self.address, self.done = address, done
        self._cuda, self._used = cuda, False

    def record(self, stream: int) -> None:
        self._cuda.record(self.done, stream)
        self._used = True

    def wait(self) -> None:
        if self._used:
            self._cuda.wait(self.done)

    def array(self, tensor: DeviceTensor) -> Array:
        memory = (ctypes.c_byte * tensor.nbytes).from_address(self.address)
        return np.ctypeslib.as_array(memory).view(tensor.dtype).reshape(tensor.shape)


class _DeviceReading(NamedTuple):
    slot: _PinnedBuffer
    tensor: DeviceTensor

    def wait(self) -> Array:
        self.slot.wait()
        return self.slot.array(self.tensor)


class _CudaEvent(NamedTuple):
    cuda: Cuda
    event: int

    def seconds_until(self, later: "_CudaEvent") -> float:
        return self.cuda.seconds(self.event, later.event)


def _own(owned: ExitStack, handle: int, destroy: Callable[[int], None]) -> int:
    owned.callback(destroy, handle)
    return handle


def tensor_bytes(manifest: Manifest, profiles: Sequence[Profile], slots: int = 0) -> dict[str, int]:
    """Bytes of each tensor at the largest shape of any profile, slots and all."""
    return _bytes(_capacities(manifest, profiles) | _slot_capacities(manifest, profiles, slots))


def slot(name: str, index: int) -> str:
    """What a slot's own tensor is called, for `Memory.view`."""
    return f"{name}.{index}"


def layout(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each of several tensors begins in one block, aligned, and how long the block is."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _bytes(capacities: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    return {name: count * np.dtype(dtype).itemsize for name, (count, dtype) in capacities.items()}


def _slot_capacities(manifest: Manifest, profiles: Sequence[Profile], slots: int) -> dict[str, tuple[int, str]]:
    """Elements and dtype of each slot's tensors: those of one image."""
    one = [replace(profile, batch=Range(1, 1, 1)) for profile in profiles]
    found = _capacities(manifest, one)
    return {slot(name, index): found[name] for index in range(slots) for name in PER_SLOT if name in found}


def _capacities(manifest: Manifest, profiles: Sequence[Profile]) -> dict[str, tuple[int, str]]:
    """Elements and dtype of each tensor at the largest shape of any profile."""
    found: dict[str, tuple[int, str]] = {}
    for name, graph in manifest.graphs.items():
        for profile in profiles:
            bounds = dimensions(name, profile, manifest.model)
            for spec in (*graph.inputs, *graph.outputs):
                count = math.prod(d if isinstance(d, int) else bounds[d].max for d in spec.shape)
                found[spec.name] = max((count, spec.dtype), found.get(spec.name, (0, spec.dtype)))
    return found
