"""The part `cuda-calls`: each call of `engine.backends.cuda.Cuda` on the device, against the runtime's assumptions."""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.gpu.cuda.kernel_plan import KernelDevice
from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings
from engine.array import Array
from engine.backends.memory import ALIGNMENT
from engine.errors import DeviceError, OutOfDeviceMemory

LONG_SPIN = 100_000_000  # clock cycles, some 50 ms
LAUNCHES = 50
LARGE = 16 << 20  # bytes; CUDA takes smaller allocations from blocks that it has already


def calls(settings: Settings, found: Findings) -> None:
    """Run the cases on the GPU."""
    from benchmarks.gpu.cuda.nvrtc import kernel_device

    run_cases(kernel_device(), found, 1 << 20 if settings.quick else 64 << 20)


def run_cases(device: KernelDevice, found: Findings, size: int) -> None:
    """Run every case.

    Args:
        size: bytes of the copies that are timed.
    """
    on_device = _OnDevice(device, size)
    found.add_cases(
        {
            "memory": on_device.memory,
            "copies": on_device.copies,
            "order_of_streams": on_device.order_of_streams,
            "cuda_graph": on_device.cuda_graph,
            "spoilt_capture": on_device.spoilt_capture,
            "refused_allocation": on_device.refused_allocation,
        }
    )
    found.answer("yes: order of streams, events, graphs and their failures are as assumed")


class _OnDevice:
    """The cases. Each owns what it allocates."""

    def __init__(self, device: KernelDevice, size: int) -> None:
        self._device, self._cuda, self._size = device, device.cuda, size

    def memory(self) -> Figures:
        """Allocations are aligned, and freed memory comes back."""
        cuda, size = self._cuda, max(self._size, LARGE)
        before, total = cuda.memory_info()
        addresses = [cuda.allocate(size + 1) for _ in range(3)]
        during = cuda.memory_info()[0]
        for address in addresses:
            cuda.free(address)
        after = cuda.memory_info()[0]
        require(all(address % ALIGNMENT == 0 for address in addresses), f"addresses {addresses} are not aligned")
        require(before - during >= 3 * size, f"3 allocations of {size} bytes took {before - during}")
        return {"total_gb": total / 1e9, "free_gb": before / 1e9, "not_returned_mb": (before - after) / 1e6}

    def copies(self) -> Figures:
        """Page-locked copies in both directions keep the bytes; the host does not wait for them."""
        cuda, size = self._cuda, self._size
        with self._owned() as own:
            stream, events = own.stream(), (own.event(), own.event(), own.event())
            source, target, device = own.host(size), own.host(size), own.device(size)
            values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            array_at(source, size)[:] = values
            for _ in range(2):  # the first copy is slower
                cuda.record(events[0], stream)
                started = time.perf_counter()
                cuda.copy(device, source, size, stream)
                enqueued = time.perf_counter() - started
                cuda.record(events[1], stream)
                cuda.copy(target, device, size, stream)
                cuda.record(events[2], stream)
                cuda.synchronize(stream)
            up, down = (cuda.seconds(*pair) for pair in ((events[0], events[1]), (events[1], events[2])))
            require(bool(np.array_equal(array_at(target, size), values)), "bytes changed on their way")
        rates = {"to_gb_per_s": size / up / 1e9 if up else None, "from_gb_per_s": size / down / 1e9 if down else None}
        return rates | {"enqueue_us": 1e6 * enqueued, "copy_us": 1e6 * up}

    def order_of_streams(self) -> Figures:
        """A stream that waits for an event sees what another stream wrote late; the host runs ahead of both."""
        cuda, launcher = self._cuda, self._device.launcher
        with self._owned() as own:
            first, second, done = own.stream(), own.stream(), own.event()
            source, target, device, sink = own.host(4), own.host(4), own.device(4), own.device(8)
            array_at(source, 4)[:], array_at(target, 4)[:] = 77, 0
            started = time.perf_counter()
            launcher.launch("spin", 1, (LONG_SPIN, ctypes.c_void_p(sink)), first)
            cuda.copy(device, source, 4, first)
            cuda.record(done, first)
            cuda.make_wait(second, done)
            cuda.copy(target, device, 4, second)
            enqueued = time.perf_counter() - started
            cuda.synchronize(second)
            waited = time.perf_counter() - started
            require(bool((array_at(target, 4) == 77).all()), "the second stream did not wait for the event")
        return {"enqueued_after_ms": 1e3 * enqueued, "done_after_ms": 1e3 * waited}

    def cuda_graph(self) -> Figures:
        """A captured graph runs nothing at capture, repeats its work at each launch, and reads memory anew."""
        cuda, launcher, count = self._cuda, self._device.launcher, 1024
        with self._owned() as own:
            stream, events = own.stream(), (own.event(), own.event())
            source, target, a, b = (
                own.host(4 * count),
                own.host(4 * count),
                own.device(4 * count),
                own.device(4 * count),
            )

            def work() -> None:
                cuda.copy(a, source, 4 * count, stream)
                for _ in range(LAUNCHES):
                    launcher.launch("move", count, (ctypes.c_void_p(a), ctypes.c_void_p(b)), stream)
                cuda.copy(target, b, 4 * count, stream)

            work()
            cuda.synchronize(stream)
            array_at(target, 4 * count)[:] = 0
            cuda.begin_capture(stream)
            work()
            graph = cuda.end_capture(stream)
            cuda.synchronize(stream)
            require(not array_at(target, 4 * count).any(), "the work ran while it was captured")
            found = {}
            for value, name, run in ((3, "launched", work), (5, "replayed", lambda: cuda.launch(graph, stream))):
                array_at(source, 4 * count)[:] = value
                found[f"{name}_us_each"] = self._time(run, stream, events) * 1e6 / LAUNCHES
                require(bool((array_at(target, 4 * count) == value).all()), f"{name} work gave other values")
            cuda.destroy_graph(graph)
        return found

    def spoilt_capture(self) -> Figures:
        """A call that a capture forbids ends the capture with an error, and nothing else."""
        cuda = self._cuda
        with self._owned() as own:
            stream, address, host = own.stream(), own.device(4), own.host(4)
            cuda.begin_capture(stream)
            reported = ""
            try:
                self._device.spoil_capture(stream)
            except DeviceError as error:
                reported = str(error)
                require(not error.sticky, f"counted as a lost context: {error}")
            try:
                cuda.end_capture(stream)
            except DeviceError as error:
                require(not error.sticky, f"counted as a lost context: {error}")
                ended = str(error)
            else:
                raise CheckFailed("a spoilt capture gave a graph")
            cuda.require_context()
            cuda.copy(address, host, 4, stream)
            cuda.synchronize(stream)
        return {"call": reported, "end_of_capture": ended}

    def refused_allocation(self) -> Figures:
        """An allocation that does not fit is refused by name, and the context is intact."""
        cuda = self._cuda
        try:
            cuda.free(cuda.allocate(2 * cuda.memory_info()[1]))
        except OutOfDeviceMemory as error:
            refused = str(error)
        else:
            raise CheckFailed("twice the GPU's memory was allocated")
        cuda.require_context()
        cuda.free(cuda.allocate(1 << 20))
        return {"error": refused}

    def _time(self, run: Callable[[], object], stream: int, events: tuple[int, int]) -> float:
        cuda, start, end = self._cuda, *events
        cuda.record(start, stream)
        run()
        cuda.record(end, stream)
        cuda.synchronize(stream)
        return cuda.seconds(start, end)

    @contextmanager
    def _owned(self) -> "Iterator[_Owner]":
        owner = _Owner(self._device)
        try:
            yield owner
        finally:
            owner.close()


class _Owner:
    """Allocations, streams and events that are freed together."""

    def __init__(self, device: KernelDevice) -> None:
        self._cuda = device.cuda
        self._owned: list[tuple[Callable[[int], None], int]] = []

    def stream(self) -> int:
        return self._own(self._cuda.create_stream(), self._cuda.destroy_stream)

    def event(self) -> int:
        return self._own(self._cuda.create_event(), self._cuda.destroy_event)

    def device(self, size: int) -> int:
        return self._own(self._cuda.allocate(size), self._cuda.free)

    def host(self, size: int) -> int:
        return self._own(self._cuda.allocate_host(size), self._cuda.free_host)

    def close(self) -> None:
        for destroy, handle in self._owned:  # streams first, in the order of creation
            if destroy == self._cuda.destroy_stream:
                self._cuda.synchronize(handle)
        for destroy, handle in reversed(self._owned):
            destroy(handle)

    def _own(self, handle: int, destroy: Callable[[int], None]) -> int:
        self._owned.append((destroy, handle))
        return handle


def array_at(address: int, size: int) -> Array:
    """Return page-locked memory as bytes."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def require(right: bool, message: str) -> None:
    """Raise CheckFailed unless a condition holds."""
    if not right:
        raise CheckFailed(message)
