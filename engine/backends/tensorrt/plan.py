"""Calls to TensorRT: a plan on the device, its contexts and its refitter. Every return value is checked.

`tensorrt` and `tensorrt_rtx` share one API; only RTX has a runtime configuration. This is the only module of `engine`
that imports either. Like `engine.backends.cuda` it makes no decisions, so tests replace it with a fake.
"""

import importlib
import logging
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.array import Array
from engine.backends.cuda import Cuda
from engine.errors import BackendUnavailable, DeviceError, OutOfDeviceMemory, PlanCorrupt, ZImageError
from engine.files import whole_file

log = logging.getLogger(__name__)

DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}  # numpy's names -> TensorRT's


class Context(Protocol):
    """One profile of a plan, ready to run in memory that the caller provides."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None: ...

    def set_address(self, name: str, address: int) -> None: ...

    def enqueue(self, stream: int) -> None: ...


class Plan(Protocol):
    """A plan on the device."""

    def activation_bytes(self, profile: int) -> int:
        """Return the bytes of memory that a context of the profile works in."""
        ...

    def create_context(self, profile: int, arena: tuple[int, int], stream: int, *, specialized: bool) -> Context:
        """Create a context for one profile.

        Args:
            arena: address and size of the memory to work in.
            specialized: compile kernels for each new shape before it runs, not in the background (RTX only).
        """
        ...

    def refit(self, weights: Mapping[str, Array], stream: int) -> None:
        """Replace the values of some weights, after the work enqueued on the stream."""
        ...

    def close(self) -> None:
        """Free the plan's memory; its contexts must be gone."""
        ...


class TensorRtPlan:
    """`Plan` on TensorRT or TensorRT-RTX.

    Args:
        package: tensorrt or tensorrt_rtx.
        runtime_graphs: let RTX capture CUDA graphs by itself.
        cache: file for the kernels that RTX compiles on this GPU; None for none. TensorRT does not use it.

    Raises:
        PlanCorrupt: TensorRT cannot load the file; the message includes TensorRT's own.
        OutOfDeviceMemory: the weights do not fit.
    """

    def __init__(self, cuda: Cuda, package: str, file: Path, *, runtime_graphs: bool, cache: Path | None) -> None:
        self._cuda, self._trt = cuda, importlib.import_module(package)
        self._logger = _make_logger(self._trt)
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # its binding's answer to a null pointer
            raise BackendUnavailable(
                f"{package} does not start: {self._logger.take_errors()}; it may need a newer driver"
            ) from error
        self._engine = self._deserialize(file)
        self._is_rtx = package.endswith("rtx")
        self._runtime_graphs = runtime_graphs
        self._cache_file = cache if self._is_rtx else None
        self._cache: Any = self._open_cache() if self._cache_file else None

    def activation_bytes(self, profile: int) -> int:
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def create_context(
        self, profile: int, arena: tuple[int, int], stream: int, *, specialized: bool
    ) -> "TensorRtContext":
        if self._is_rtx:
            context = self._engine.create_execution_context(self._configuration(specialized))
        else:
            context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._require(context is not None, "to create an execution context")
        self._require(context.set_optimization_profile_async(profile, stream), f"profile {profile}")
        context.set_device_memory(*arena)
        return TensorRtContext(context, self._require)

    def refit(self, weights: Mapping[str, Array], stream: int) -> None:
        refitter = self._trt.Refitter(self._engine, self._logger)  # a new one each time: it keeps addresses, not arrays
        for name, array in weights.items():
            data_type = getattr(self._trt.DataType, DATA_TYPES[array.dtype.name])
            values = self._trt.Weights(data_type, array.ctypes.data, array.size)
            self._require(refitter.set_named_weights(name, values), f"new values for {name}")
        missing = refitter.get_missing_weights()
        self._require(not missing, f"a refit without {', '.join(missing[:3])}")
        self._require(refitter.refit_cuda_engine_async(stream), "to refit")
        self._cuda.synchronize(stream)  # while the refitter exists

    def close(self) -> None:
        if self._cache is not None:
            self._write_cache()
        self._cache = self._engine = self._runtime = None  # TensorRT frees objects that nothing refers to

    def _deserialize(self, file: Path) -> Any:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._failure(f"cannot load {file}", PlanCorrupt)
        return engine

    def _configuration(self, specialized: bool) -> Any:
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if self._runtime_graphs else graphs.DISABLED
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER if specialized else kernels.LAZY
        if self._cache is not None:
            self._require(config.set_runtime_cache(self._cache), "its runtime cache")
        return config

    def _open_cache(self) -> Any:
        cache = self._engine.create_runtime_config().create_runtime_cache()
        assert self._cache_file is not None
        try:
            if self._cache_file.is_file() and not cache.deserialize(self._cache_file.read_bytes()):
                words = self._logger.take_errors()
                log.info(
                    "kernel cache %s is from another GPU or TensorRT-RTX; compiling again: %s", self._cache_file, words
                )
        except OSError as error:
            log.warning("cannot read the kernel cache; compiling again: %s", error)
        return cache

    def _write_cache(self) -> None:
        assert self._cache_file is not None
        compiled = self._cache.serialize()
        if compiled is None:
            log.warning("kernels were not cached and will be compiled again next time: %s", self._logger.take_errors())
            return
        try:
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._cache_file) as file:
                file.write(compiled)
        except OSError as error:
            log.warning("kernels were not cached and will be compiled again next time: %s", error)

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._failure(f"refuses {what}", DeviceError)

    def _failure(self, what: str, kind: type[ZImageError]) -> ZImageError:
        """Return the error for a call that TensorRT has just refused, with its own message.

        Raises:
            DeviceError: the GPU context is lost.
        """
        self._cuda.require_context()
        words = self._logger.take_errors()
        if "out of memory" in words.lower():
            return OutOfDeviceMemory(
                f"{self._trt.__name__} {what}, since GPU memory is full: {words}; serve fewer profiles (--profile), or "
                "load prompt encoder and denoiser one at a time (--offload)"
            )
        return kind(f"{self._trt.__name__} {what}: {words}")


class TensorRtContext:
    """`Context` on TensorRT."""

    def __init__(self, context: Any, require: Any) -> None:
        self._context, self._require = context, require

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._require(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")

    def set_address(self, name: str, address: int) -> None:
        self._require(self._context.set_tensor_address(name, address), f"the address of {name}")

    def enqueue(self, stream: int) -> None:
        self._require(self._context.execute_async_v3(stream), "to run")


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Log warnings, and keep errors for the exception that will be raised."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(message)
            elif severity == trt.ILogger.WARNING:
                log.warning("%s: %s", trt.__name__, message)

        def take_errors(self) -> str:
            """Return the errors since the last call."""
            words = "; ".join(self._errors) or "no reason given"
            self._errors.clear()
            return words

    return Logger()
