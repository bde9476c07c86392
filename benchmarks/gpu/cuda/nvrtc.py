"""Compilation and launch of the kernels with NVRTC and CUDA's driver interface, both of cuda-bindings."""

import ctypes
from typing import Any

from benchmarks.gpu.cuda.kernel_plan import Argument, KernelDevice
from benchmarks.gpu.cuda.kernel_source import CUDA_MACROS, SOURCE
from engine.backends.cuda import STICKY, CudaRuntime
from engine.errors import DeviceError

# IEEE arithmetic, so that numpy gives the same bits.
OPTIONS = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
THREADS, BLOCKS = 256, 4096  # a kernel's loop covers the rest


def kernel_device() -> KernelDevice:
    """Return the first GPU with the kernels loaded.

    Raises:
        BackendUnavailable: there is no GPU, or no cuda-bindings.
        DeviceError: the kernels cannot be compiled or loaded.
    """
    cuda = CudaRuntime()
    kernels = NvrtcKernels(cuda.compute_capability())

    def lose_context(stream: int) -> None:
        kernels.launch("crash", 1, (ctypes.c_void_p(64),), stream)

    return KernelDevice(cuda, kernels, cuda.synchronize, lose_context)


def compile_kernels(capability: str) -> bytes:
    """Return machine code for a compute capability such as "9.0", or PTX if NVRTC does not know it.

    Machine code loads with older drivers of the same major version; PTX of a newer NVRTC does not.

    Raises:
        DeviceError: the text does not compile; the message is the compiler's.
    """
    from cuda.bindings import nvrtc

    wanted, known = int(capability.replace(".", "")), _checked(nvrtc.nvrtcGetSupportedArchs())
    is_known = wanted in known
    target = f"sm_{wanted}" if is_known else f"compute_{max(arch for arch in known if arch <= wanted)}"
    text = (CUDA_MACROS + SOURCE).encode()
    program = _checked(nvrtc.nvrtcCreateProgram(text, b"kernels.cu", 0, [], []))
    options = [option.encode() for option in (f"--gpu-architecture={target}", *OPTIONS)]
    status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status.name != "NVRTC_SUCCESS":
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise DeviceError(f"NVRTC: {status.name}: {log.decode(errors='replace')}")
    size, read = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if is_known else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    code = bytes(_checked(size(program)))
    _checked(read(program, code))
    return code


class NvrtcKernels:
    """`Launcher` of the compiled kernels, in the context that is current."""

    def __init__(self, capability: str) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        self._code = ctypes.create_string_buffer(compile_kernels(capability))
        self._module = _checked(driver.cuModuleLoadData(ctypes.addressof(self._code)))
        self._functions: dict[str, Any] = {}

    def launch(self, kernel: str, count: int, arguments: tuple[Argument, ...], stream: int) -> None:
        if kernel not in self._functions:
            self._functions[kernel] = _checked(self._driver.cuModuleGetFunction(self._module, kernel.encode()))
        values = [a if isinstance(a, ctypes.c_void_p) else ctypes.c_int(a) for a in (count, *arguments)]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        blocks = min(-(-count // THREADS), BLOCKS)
        threads = 1 if count == 1 else THREADS
        _checked(
            self._driver.cuLaunchKernel(
                self._functions[kernel], blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(addresses), 0
            )
        )


def _checked(answer: tuple[Any, ...]) -> Any:
    """Return the result of a call without its status: None, one, or a tuple.

    Raises:
        DeviceError: the call failed.
    """
    status, *results = answer
    if not status.name.endswith("_SUCCESS"):
        raise DeviceError(status.name, sticky=_runtime_name(status.name) in STICKY)
    return results[0] if len(results) == 1 else tuple(results) or None


def _runtime_name(name: str) -> str:
    """Convert CUDA_ERROR_ILLEGAL_ADDRESS to cudaErrorIllegalAddress."""
    return "cudaError" + "".join(word.capitalize() for word in name.removeprefix("CUDA_ERROR_").split("_"))
