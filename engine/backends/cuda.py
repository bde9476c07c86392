"""The CUDA runtime as far as engines need it: memory, copies, streams, events, graphs. Every return code is checked.

Thin on purpose: nothing here decides anything, so that tests can put a recording fake in its place.
"""

from typing import Any, Protocol

from engine.errors import BackendUnavailable, DeviceError, OutOfDeviceMemory

# After these the context is lost: every later call of the process fails too.
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
FIRST_DEVICE = 0  # of those that CUDA_VISIBLE_DEVICES shows


class Cuda(Protocol):
    """One device. Addresses and handles of streams, events and graphs are integers."""

    def memory_info(self) -> tuple[int, int]:
        """Bytes that can still be allocated, and all there are."""
        ...

    def allocate(self, size: int) -> int:
        """Device memory, 256-byte aligned. Raises OutOfDeviceMemory."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> int:
        """Page-locked host memory, which copies do not wait for."""
        ...

    def free_host(self, address: int) -> None: ...

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Enqueues a copy between device and page-locked memory, whichever way the addresses say."""
        ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Blocks the calling thread until the stream is empty."""
        ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, event: int) -> None:
        """Blocks the calling thread until what was enqueued before `record` is done."""
        ...

    def make_wait(self, stream: int, event: int) -> None:
        """What is enqueued on the stream from now on starts when what was enqueued before `record` is done."""
        ...

    def seconds(self, start: int, end: int) -> float:
        """Between two events that are done."""
        ...

    def begin_capture(self, stream: int) -> None:
        """From now on, what this thread enqueues on the stream is noted down and not run."""
        ...

    def end_capture(self, stream: int) -> int:
        """A graph of what was enqueued, ready to launch."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def require_context(self) -> None:
        """Raises DeviceError if the context is lost, whoever lost it."""
        ...


class CudaRuntime:
    """`Cuda` by cuda-bindings, on the first device that is visible.

    Raises:
        BackendUnavailable: there is no driver, one that is too old, no device, or no cuda-bindings.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendUnavailable("TensorRT plans need cuda-bindings; pip install cuda-bindings") from error
        self._runtime: Any = runtime
        self._require_driver()
        try:
            self._call("cudaSetDevice", FIRST_DEVICE)
            self._call("cudaFree", 0)  # makes the context, so that memory_info is what is left beside it
            self._probe = self.create_stream()
        except DeviceError as error:
            raise _unavailable(str(error)) from error

    def compute_capability(self) -> str:
        """Such as "8.9"."""
        return f"{self._attribute('ComputeCapabilityMajor')}.{self._attribute('ComputeCapabilityMinor')}"

    def name(self) -> str:
        """The device's, as its maker writes it."""
        name: bytes = self._call("cudaGetDeviceProperties", FIRST_DEVICE).name
        return name.decode().rstrip("\0")

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
        # who waits for it sleeps; a core that spins instead is one less for encoding images
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
        # not cudaGetLastError: it knows of calls through this copy of the runtime, and TensorRT has one of its own
        status, *_ = self._runtime.cudaStreamQuery(self._probe)
        if status.name in STICKY:
            raise failure("cudaStreamQuery", status.name)

    def _require_driver(self) -> None:
        driver, ours = self._call("cudaDriverGetVersion"), self._call("cudaRuntimeGetVersion")
        if driver == 0:
            raise _unavailable("no NVIDIA driver is installed here")
        if driver // 1000 < ours // 1000:  # within a major version, older drivers do
            raise _unavailable(
                f"its driver is for CUDA {_version(driver)}, cuda-bindings for CUDA {_version(ours)}; "
                f"install a newer driver, or cuda-bindings {driver // 1000}.*"
            )

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._runtime.cudaDeviceAttr, f"cudaDevAttr{name}")
        return int(self._call("cudaDeviceGetAttribute", attribute, FIRST_DEVICE))

    def _call(self, name: str, *arguments: Any) -> Any:
        """The function's results without its status: none, one, or a tuple."""
        status, *results = getattr(self._runtime, name)(*arguments)
        if status.name != "cudaSuccess":
            raise failure(name, status.name, arguments)
        return results[0] if len(results) == 1 else tuple(results)


def failure(function: str, status: str, arguments: tuple[Any, ...] = ()) -> DeviceError:
    """The error for what a CUDA function answered."""
    if status == "cudaErrorMemoryAllocation":
        size = f" of {arguments[0] / 1e9:.2f} GB" if function in ("cudaMalloc", "cudaHostAlloc") else ""
        whose = "page-locked memory of the host" if function == "cudaHostAlloc" else "GPU memory (see nvidia-smi)"
        return OutOfDeviceMemory(f"{function}{size} failed: no {whose} is left for it; another process may have it")
    if status in STICKY:
        return DeviceError(f"{function}: {status}; {REPLACE}", sticky=True)
    return DeviceError(f"{function}: {status}")


REPLACE = "the GPU context of this process is lost and nothing can be generated in it any more: replace the process"


def _unavailable(reason: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"TensorRT plans need a CUDA device: {reason}; "
        "without a GPU, serve plans built with: build-engines --flavor onnx"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
