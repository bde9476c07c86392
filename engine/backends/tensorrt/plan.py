"""Calls to TensorRT: a plan on the device, its contexts and its refitter. Every call is checked.

Most calls return False or None when they fail; some raise RuntimeError or TypeError, and some return nothing and only
record an error. `tensorrt` and `tensorrt_rtx` share one API; only RTX has a runtime configuration. This is the only
module of `engine` that imports either. Like `engine.backends.cuda` it makes no decisions, so tests replace it with a
fake.

TensorRT keeps addresses, and its Python objects keep each other alive: a context its engine, an engine its runtime, and
each of them its logger and recorder. What a call copies is said at the call.
"""

import importlib
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from engine.array import Array
from engine.backends.cuda import Cuda
from engine.backends.tensorrt.errors import Refusals
from engine.backends.tensorrt.kernel_cache import KernelCache
from engine.errors import BackendUnavailable, DeviceError, PlanCorrupt

DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}  # numpy's names -> TensorRT's
PORTION = 256 << 20  # bytes of weights that are given to TensorRT at once


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

    def refit(self, weights: Iterable[tuple[str, Array]], stream: int) -> Iterator[None]:
        """Replace the values of some weights, after the work enqueued on the stream, in portions of PORTION bytes."""
        ...

    def save_kernels(self) -> None:
        """Write kernels that were compiled since the last call to their file (RTX only)."""
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
        self._refusals = Refusals(self._trt, cuda)
        try:
            self._runtime = self._trt.Runtime(self._refusals.logger)
        except TypeError as error:  # its binding's answer to a null pointer; there is no recorder yet
            raise BackendUnavailable(
                f"{package} does not start; it has printed the reason. It may need a newer driver"
            ) from error
        self._runtime.error_recorder = self._refusals.recorder
        self._engine = self._deserialize(file)
        self._engine.error_recorder = self._refusals.recorder
        self._is_rtx = package.endswith("rtx")
        self._runtime_graphs = runtime_graphs
        self._cache = KernelCache(cache, self._create_cache(), self._refusals) if self._is_rtx and cache else None

    def activation_bytes(self, profile: int) -> int:
        self._refusals.forget()
        size = int(self._engine.get_device_memory_size_for_profile_v2(profile))
        self._refusals.require_silence(f"profile {profile}")
        return size

    def create_context(
        self, profile: int, arena: tuple[int, int], stream: int, *, specialized: bool
    ) -> "TensorRtContext":
        refusals = self._refusals
        refusals.forget()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        configuration = self._configuration(specialized) if self._is_rtx else strategy
        context = self._engine.create_execution_context(configuration)
        refusals.require(context is not None, "to create an execution context")
        context.error_recorder = refusals.recorder
        try:
            accepted = context.set_optimization_profile_async(profile, stream)
        except RuntimeError:  # its binding's answer to False
            accepted = False
        refusals.require(accepted, f"profile {profile}")
        context.set_device_memory(*arena)  # returns nothing; the memory stays ours
        refusals.require_silence(f"an arena of {arena[1]} bytes")
        return TensorRtContext(context, configuration, refusals, self._cache)

    def refit(self, weights: Iterable[tuple[str, Array]], stream: int) -> Iterator[None]:
        self._refusals.forget()
        refitter, given = self._create_refitter(), _Given()
        for name, array in weights:
            data_type = getattr(self._trt.DataType, DATA_TYPES[array.dtype.name])
            values = self._trt.Weights(data_type, array.ctypes.data, array.size)
            self._refusals.require(refitter.set_named_weights(name, values), f"new values for {name}")
            given.arrays[name] = array
            # TensorRT may have joined weights; then a portion grows until it has all of them
            if given.bytes >= PORTION and not refitter.get_missing_weights():
                self._refit_given(refitter, given, stream)
                yield
        if given.arrays:
            missing = refitter.get_missing_weights()
            self._refusals.require(not missing, f"a refit without {', '.join(missing[:3])}")
            self._refit_given(refitter, given, stream)
            yield

    def save_kernels(self) -> None:
        if self._cache is not None and self._cache.is_used:
            self._cache.save()

    def close(self) -> None:
        if self._cache is not None:
            self._cache.save()  # also of kernels that were compiled in the background since the last time
        self._engine = self._cache = self._runtime = None  # TensorRT frees objects that nothing refers to

    def _deserialize(self, file: Path) -> Any:
        try:
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                engine = self._runtime.deserialize_cuda_engine(content)  # copies what it needs
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise PlanCorrupt(f"cannot read {file}: {error}; build again") from error
        if engine is None:
            raise self._refusals.failure(f"cannot load {file}", PlanCorrupt)
        return engine

    def _create_cache(self) -> Any:
        configuration = self._engine.create_runtime_config()
        self._refusals.require(configuration is not None, "to create a runtime configuration")
        cache = configuration.create_runtime_cache()
        self._refusals.require(cache is not None, "to create a runtime cache")
        return cache

    def _configuration(self, specialized: bool) -> Any:
        trt, refusals = self._trt, self._refusals
        config = self._engine.create_runtime_config()
        refusals.require(config is not None, "to create a runtime configuration")
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        graphs, kernels = trt.CudaGraphStrategy, trt.DynamicShapesKernelSpecializationStrategy
        settings = {
            "cuda_graph_strategy": graphs.WHOLE_GRAPH_CAPTURE if self._runtime_graphs else graphs.DISABLED,
            "dynamic_shapes_kernel_specialization_strategy": kernels.EAGER if specialized else kernels.LAZY,
        }
        for name, value in settings.items():
            setattr(config, name, value)
            refusals.require(getattr(config, name) == value, f"{name} {value}")  # the setter's answer is not passed on
        if self._cache is not None:
            refusals.require(config.set_runtime_cache(self._cache.cache), "its runtime cache")
        return config

    def _create_refitter(self) -> Any:
        try:
            refitter = self._trt.Refitter(self._engine, self._refusals.logger)
        except TypeError as error:  # its binding's answer to a null pointer
            raise self._refusals.failure("cannot change the plan's weights", DeviceError) from error
        refitter.error_recorder = self._refusals.recorder
        refitter.max_threads = os.cpu_count() or 1  # 1 by default
        return refitter

    def _refit_given(self, refitter: Any, given: "_Given", stream: int) -> None:
        """Pass the weights that were given on to the device, and take them back."""
        self._refusals.require(refitter.refit_cuda_engine_async(stream), "to refit")
        self._cuda.synchronize(stream)
        for name in given.arrays:
            # it keeps addresses, and reads all of them again at the next refit
            self._refusals.require(refitter.unset_named_weights(name), f"to forget {name}")
        given.arrays.clear()


class _Given:
    """Weights whose addresses the refitter has, and which must not be freed."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class TensorRtContext:
    """`Context` on TensorRT. Keeps its configuration, since nothing says that TensorRT copies it."""

    def __init__(self, context: Any, configuration: Any, refusals: Refusals, cache: KernelCache | None) -> None:
        self._context, self._configuration = context, configuration
        self._refusals, self._cache = refusals, cache

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self._cache is not None:
            self._cache.is_used = True
        self._refusals.require(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")

    def set_address(self, name: str, address: int) -> None:
        self._refusals.require(self._context.set_tensor_address(name, address), f"the address of {name}")

    def enqueue(self, stream: int) -> None:
        self._refusals.require(self._context.execute_async_v3(stream), "to run")
