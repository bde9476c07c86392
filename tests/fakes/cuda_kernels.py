"""The kernels of `zimage-bench gpu-check` on the fake device: the same text, compiled for the host."""

import ctypes
import inspect
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda

from benchmarks.gpu.cuda.kernel_plan import Argument, KernelDevice
from benchmarks.gpu.cuda.kernel_source import SOURCE

HOST_MACROS = """
#define KERNEL void
#define EACH(i, n) for (int i = 0; i < (n); ++i)
#define CYCLES (start_of_time += 1000000)
static long long start_of_time;
"""
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="has no C compiler")


def compile_for_host(folder: Path, text: str = SOURCE) -> ctypes.CDLL:
    """Compile the kernels. Multiplications and additions are not contracted, as on the GPU."""
    source, library = folder / "kernels.c", folder / "kernels.so"
    source.write_text(HOST_MACROS + text)
    subprocess.run(["cc", "-O1", "-ffp-contract=off", "-shared", "-fPIC", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


class ThreadSafeCuda(FakeCuda):
    """The fake device for several threads, as CUDA is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not inspect.ismethod(found):
            return found

        def locked(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                return found(*arguments, **options)

        return locked


class HostKernels:
    """`Launcher` that enqueues the compiled kernels on the fake device."""

    def __init__(self, cuda: FakeCuda, library: ctypes.CDLL) -> None:
        self._cuda, self._library = cuda, library

    def launch(self, kernel: str, count: int, arguments: tuple[Argument, ...], stream: int) -> None:
        function = getattr(self._library, kernel)
        values = [a if isinstance(a, ctypes.c_void_p) else ctypes.c_int(a) for a in (count, *arguments)]
        addresses = [a.value or 0 for a in arguments if isinstance(a, ctypes.c_void_p)]

        def run() -> None:
            for address in addresses:
                self._cuda.bytes_at(address, 1, device=True)  # not freed since it was enqueued
            function(*values)

        self._cuda._begin("launch_kernel", waits=False)
        self._cuda.enqueue(stream, run, seconds=1e-4)


def kernel_device(cuda: FakeCuda, folder: Path, text: str = SOURCE) -> KernelDevice:
    """Return the fake device with the kernels loaded."""

    def spoil_capture(_stream: int) -> None:
        cuda.uncapturable = True

    def lose_context(_stream: int) -> None:
        waiting = ("synchronize", "wait", "require_context", "copy", "record", "launch_kernel")
        cuda.fails |= dict.fromkeys(waiting, "cudaErrorIllegalAddress")

    return KernelDevice(cuda, HostKernels(cuda, compile_for_host(folder, text)), spoil_capture, lose_context)
