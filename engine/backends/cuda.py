"""The part of the CUDA runtime that engines need: memory, copies, streams, events, graphs.

Every return code is checked. The module makes no decisions, so tests replace it with a recording fake.
"""

import re
from pathlib import Path
from typing import Any, Protocol

from engine.errors import BackendUnavailable, DeviceError, OutOfDeviceMemory

# After these errors the context is lost, and every later call of the process fails.
STICKY = {
    "cudaErrorAssert",
    "cudaErrorContained",
    "cudaErrorECCUncorrectable",
    "cudaErrorExternalDevice",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorMpsClientTerminated",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorTensorMemoryLeak",
    "cudaErrorUnknown",
}
DRIVER_FILE = Path("/proc/driver/nvidia/version")
FIRST_DEVICE = 0  # of those that CUDA_VISIBLE_DEVICES shows


class Cuda(Protocol):
    """One device. Addresses and handles of streams, events and graphs are integers."""

    def memory_info(self) -> tuple[int, int]:
        """Return the free bytes of device memory, and the bytes in total."""
        ...

    def allocate(self, size: int) -> int:
        """Allocate device memory, 256-byte aligned.

        Raises:
            OutOfDeviceMemory: there is not enough.
        """
        ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> int:
        """Allocate page-locked host memory, which copies to and from do not block."""
        ...

    def free_host(self, address: int) -> None: ...

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy in either direction between device and page-locked memory."""
        ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Block the calling thread until the stream is empty."""
        ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, event: int) -> None:
        """Block the calling thread until work enqueued before `record` is done."""
        ...

    def make_wait(self, stream: int, event: int) -> None:
        """Make later work on the stream start only when work enqueued before `record` is done."""
        ...

    def seconds(self, start: int, end: int) -> float:
        """Return the seconds between two events that are done."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Capture the work that this thread enqueues on the stream from now on, instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """End the capture and return its graph, ready to launch."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def require_context(self) -> None:
        """Check that the context is intact, also after calls from other libraries.

        Raises:
            DeviceError: it is lost.
        """
        ...


class CudaRuntime:
    """`Cuda` on cuda-bindings, for the first visible device.

    Raises:
        BackendUnavailable: there is no driver, no device or no cuda-bindings, or the driver is too old.
    """

    def __init__(self) -> None:
        self._runtime: Any = _runtime()
        self._require_driver()
        try:
            self._call("cudaSetDevice", FIRST_DEVICE)
            self._call("cudaFree", 0)  # creates the context, so that memory_info counts it
            self._probe = self.create_stream()
        except DeviceError as error:
            raise _unavailable(str(error)) from error

    def compute_capability(self) -> str:
        """Return the compute capability, such as "8.9"."""
        return f"{self._attribute('ComputeCapabilityMajor')}.{self._attribute('ComputeCapabilityMinor')}"

    def name(self) -> str:
        """Return the device's name."""
        name: bytes = self._call("cudaGetDeviceProperties", FIRST_DEVICE).name
        return name.decode().rstrip("\0")

    def driver(self) -> str:
        """Return the driver's version where Linux tells it, and the CUDA version that it is for."""
        cuda = f"for CUDA {_version(self._call('cudaDriverGetVersion'))}"
        try:
            match = re.search(r"\b\d{3}\.[\d.]+\b", DRIVER_FILE.read_text())
        except OSError:
            return cuda
        return f"{match[0]} {cuda}" if match else cuda

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> int:
        return int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", destination, source, size, kind, stream)

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def create_event(self) -> int:
        # a thread that waits sleeps; a spinning one would take a core from encoding images
        return int(self._call("cudaEventCreateWithFlags", self._runtime.cudaEventBlockingSync))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def make_wait(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def seconds(self, start: int, end: int) -> float:
        return float(self._call("cudaEventElapsedTime", start, end)) / 1e3

    def begin_capture(self, stream: int) -> None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        captured = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", captured, 0))
        finally:
            self._call("cudaGraphDestroy", captured)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def require_context(self) -> None:
        # not cudaGetLastError: it covers only this copy of the runtime, and TensorRT has its own
        status, *_ = self._runtime.cudaStreamQuery(self._probe)
        if status.name in STICKY:
            raise failure("cudaStreamQuery", status.name)

    def _require_driver(self) -> None:
        driver, ours = self._call("cudaDriverGetVersion"), self._call("cudaRuntimeGetVersion")
        if driver == 0:
            raise _unavailable("no NVIDIA driver is installed")
        if driver // 1000 < ours // 1000:  # within a major version, older drivers work
            raise _unavailable(
                f"the driver is for CUDA {_version(driver)}, cuda-bindings for CUDA {_version(ours)}; "
                f"install a newer driver, or cuda-bindings {driver // 1000}.*"
            )

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._runtime.cudaDeviceAttr, f"cudaDevAttr{name}")
        return int(self._call("cudaDeviceGetAttribute", attribute, FIRST_DEVICE))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function and return its results without the status: none, one, or a tuple."""
        status, *results = getattr(self._runtime, name)(*arguments)
        if status.name != "cudaSuccess":
            raise failure(name, status.name, arguments)
        return results[0] if len(results) == 1 else tuple(results)


def count_devices() -> int:
    """Return the number of devices that CUDA_VISIBLE_DEVICES shows, without creating a context.

    Raises:
        BackendUnavailable: there is no driver, no device or no cuda-bindings, or the driver is too old.
    """
    status, count = _runtime().cudaGetDeviceCount()
    if status.name != "cudaSuccess":
        raise _unavailable(str(failure("cudaGetDeviceCount", status.name)))
    return int(count)


def failure(function: str, status: str, arguments: tuple[Any, ...] = ()) -> DeviceError:
    """Return the error for a CUDA function's status."""
    if status == "cudaErrorMemoryAllocation":
        size = f" of {arguments[0] / 1e9:.2f} GB" if function in ("cudaMalloc", "cudaHostAlloc") else ""
        kind = "page-locked host memory" if function == "cudaHostAlloc" else "GPU memory (see nvidia-smi)"
        return OutOfDeviceMemory(f"{function}{size} failed: not enough {kind}; another process may use it")
    if status in STICKY:
        return DeviceError(f"{function}: {status}; {REPLACE}", sticky=True)
    return DeviceError(f"{function}: {status}")


REPLACE = "the GPU context of this process is lost, so it can generate nothing more; replace the process"


def _runtime() -> Any:
    """Return the module of the CUDA runtime."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailable(
            "TensorRT plans need cuda-bindings, which is not installed; install it with: pip install cuda-bindings"
        ) from error
    return runtime


def _unavailable(reason: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"TensorRT plans need a CUDA device: {reason}; "
        "without a GPU, serve plans built with: build-engines --flavor onnx"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
