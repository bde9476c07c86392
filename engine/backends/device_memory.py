"""Memory on a device: one block on the GPU, and page-locked buffers on the host for copies."""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import cycle
from typing import NamedTuple

import numpy as np

from engine.array import Array
from engine.backends.cuda import Cuda
from engine.backends.memory import VIEWS, DeviceTensor, capacities, capacity_bytes, layout, slot_capacities
from engine.plan.manifest import Manifest, Profile

STAGING_BUFFERS = 2  # per tensor, page-locked: the host is at most one step ahead of the device
# Three events for each of 3 batches, two for each of 2 decodings, 3 spare; two more per row are added.
TIMING_EVENTS = 16


class DeviceMemory:
    """`Memory` in one block on the device and one page-locked block on the host.

    Copies to the device are enqueued on `stream`. Copies to the host have a stream of their own, so that the next
    steps do not wait for them.
    """

    max_ahead = 1

    def __init__(self, cuda: Cuda, manifest: Manifest, profiles: Sequence[Profile], slots: int = 0) -> None:
        self._cuda, self.slots = cuda, slots
        shared, per_slot = capacities(manifest, profiles), slot_capacities(manifest, profiles, slots)
        self._dtypes = {name: dtype for name, (_, dtype) in (shared | per_slot).items()}
        offsets, size = layout(capacity_bytes(shared | per_slot))
        host_offsets, host_size = layout(capacity_bytes(shared))  # slots are filled from the shared tensors
        with ExitStack() as owned:
            self.stream, self._copies = (_own(owned, cuda.create_stream(), cuda.destroy_stream) for _ in range(2))
            device = _own(owned, cuda.allocate(size), cuda.free)
            host = _own(owned, cuda.allocate_host(STAGING_BUFFERS * host_size), cuda.free_host)
            timing_events = TIMING_EVENTS + 2 * max(profile.batch.max for profile in profiles)
            events = iter(
                [
                    _own(owned, cuda.create_event(), cuda.destroy_event)
                    for _ in range(STAGING_BUFFERS * len(host_offsets) + timing_events)
                ]
            )
            self._owned = owned.pop_all()
        self._addresses = {name: device + offset for name, offset in offsets.items()}
        self._staging = {
            name: cycle(
                [_StagingBuffer(cuda, host + index * host_size + at, next(events)) for index in range(STAGING_BUFFERS)]
            )
            for name, at in host_offsets.items()
        }
        self._timing_events = cycle([_CudaEvent(cuda, event) for event in events])
        self._readbacks: dict[str, _StagingBuffer] = {}  # by tensor: a copy to the host that may still be running
        self.view = lru_cache(maxsize=VIEWS)(self._view)

    def row(self, tensor: DeviceTensor, index: int) -> DeviceTensor:
        shape = (1, *tensor.shape[1:])
        address = tensor.address + index * tensor.nbytes // tensor.shape[0]
        return DeviceTensor(tensor.buffer, address, shape, tensor.dtype)

    def write(self, name: str, values: Array) -> DeviceTensor:
        tensor: DeviceTensor = self.view(name, values.shape)
        self.prepare_write(tensor)
        staging = next(self._staging[name])
        staging.wait()  # for the copy that used this buffer last
        staging.array(tensor)[...] = values
        self._cuda.copy(tensor.address, staging.address, tensor.nbytes, self.stream)
        staging.record(self.stream)
        return tensor

    def read(self, tensor: DeviceTensor) -> "_DeviceReadback":
        staging = next(self._staging[tensor.buffer])
        staging.wait()
        self._cuda.record(staging.done, self.stream)  # for now, the event means that the values are there
        self._cuda.make_wait(self._copies, staging.done)
        self._cuda.copy(staging.address, tensor.address, tensor.nbytes, self._copies)
        staging.record(self._copies)
        self._readbacks[tensor.buffer] = staging
        return _DeviceReadback(staging, tensor)

    def copy(self, to: DeviceTensor, source: DeviceTensor) -> None:
        assert to.shape == source.shape and to.dtype == source.dtype
        self.prepare_write(to)
        self._cuda.copy(to.address, source.address, source.nbytes, self.stream)

    def prepare_write(self, tensor: DeviceTensor) -> None:
        staging = self._readbacks.pop(tensor.buffer, None)
        if staging is not None:
            self._cuda.make_wait(self.stream, staging.done)

    def record_event(self) -> "_CudaEvent":
        timing = next(self._timing_events)
        self._cuda.record(timing.event, self.stream)
        return timing

    def synchronize(self) -> None:
        for stream in (self.stream, self._copies):
            self._cuda.synchronize(stream)

    def usage(self) -> tuple[int, int]:
        free, total = self._cuda.memory_info()
        return total - free, total

    def close(self) -> None:
        """Wait for what is running and free everything."""
        with self._owned:
            self.synchronize()

    def _view(self, name: str, shape: tuple[int, ...]) -> DeviceTensor:
        return DeviceTensor(name, self._addresses[name], shape, self._dtypes[name])


class _StagingBuffer:
    """A page-locked buffer, and the event after the copy that was enqueued on it last."""

    def __init__(self, cuda: Cuda, address: int, done: int) -> None:
        self.address, self.done = address, done
        self._cuda, self._is_used = cuda, False

    def record(self, stream: int) -> None:
        self._cuda.record(self.done, stream)
        self._is_used = True

    def wait(self) -> None:
        if self._is_used:
            self._cuda.wait(self.done)

    def array(self, tensor: DeviceTensor) -> Array:
        memory = (ctypes.c_byte * tensor.nbytes).from_address(self.address)
        return np.ctypeslib.as_array(memory).view(tensor.dtype).reshape(tensor.shape)


class _DeviceReadback(NamedTuple):
    staging: _StagingBuffer
    tensor: DeviceTensor

    def wait(self) -> Array:
        self.staging.wait()
        return self.staging.array(self.tensor)


class _CudaEvent(NamedTuple):
    cuda: Cuda
    event: int

    def seconds_until(self, later: "_CudaEvent") -> float:
        return self.cuda.seconds(self.event, later.event)


def _own(owned: ExitStack, handle: int, destroy: Callable[[int], None]) -> int:
    owned.callback(destroy, handle)
    return handle
