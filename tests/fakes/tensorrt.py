"""A fake `tensorrt` module that answers as the real one's Python bindings do, per pyCore.cpp and NvInferRuntime.h.

A call that fails returns False or None, raises RuntimeError or TypeError, or returns nothing, whichever the real one
does; its words go to the error recorder alone, which is found where the real one finds it. Wrong use raises `Misuse`.
"""

import ctypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from fakes.cuda import FakeCuda, Misuse

ARENA = 4096  # bytes that a context needs
PROFILES = 2


@dataclass
class FakeTensorRt:
    """The module, and what was done with it.

    Attributes:
        fails: functions that fail, with the words that they record.
        weights: the plan's weights by name; the refitter takes arrays of their type and size.
        joined: weights that must be given together.
        cuda: the device, on whose streams refits run.
    """

    __name__: str = "fake_tensorrt"
    cuda: FakeCuda = field(default_factory=FakeCuda)
    fails: Mapping[str, str] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    joined: tuple[str, ...] = ()
    runtime_cache: bytes = b"compiled"
    log: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.IErrorRecorder = type("IErrorRecorder", (), {})
        self.ErrorCodeTRT = SimpleNamespace(UNSPECIFIED_ERROR=1)
        self.Logger = _logger()
        self.DataType = SimpleNamespace(HALF=np.float16, FLOAT=np.float32, BF16=np.uint16)
        self.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="STATIC", USER_MANAGED="USER_MANAGED")
        self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE", DISABLED="DISABLED")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER", LAZY="LAZY")

    def Runtime(self, logger: Any) -> "_Runtime":
        if not isinstance(logger, self.Logger):
            raise Misuse("a logger in Python takes the interpreter's lock for each message")
        if "Runtime" in self.fails:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return _Runtime(self)

    def Refitter(self, engine: "_Engine", _logger: Any) -> "_Refitter":
        if self.did_fail(engine, "Refitter"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return _Refitter(self)

    def Weights(self, dtype: Any, address: int, size: int) -> SimpleNamespace:
        return SimpleNamespace(dtype=dtype, address=address, size=size)

    def did_fail(self, owner: "_Object", function: str) -> bool:
        """Note a call. If it is to fail, record its words in the recorder of the object or of what created it."""
        self.log.append(function)
        self.calls[function] += 1
        if function not in self.fails:
            return False
        if owner.error_recorder is None:
            raise Misuse(f"the words of {function} are lost: {type(owner).__name__} has no error recorder")
        owner.error_recorder.report_error(1, self.fails[function])
        return True


def _logger() -> type:
    class Logger:
        WARNING = 2

        def __init__(self, min_severity: int) -> None:
            self.min_severity = min_severity

    return Logger


class _Object:
    """Stricter than the real one, which passes a recorder on: only what has no such property uses another's."""

    def __init__(self, trt: FakeTensorRt, recorder: Any = None) -> None:
        self.trt, self.error_recorder = trt, recorder


class _Runtime(_Object):
    def deserialize_cuda_engine(self, content: Any) -> "_Engine | None":
        memoryview(content).release()  # a buffer
        return None if self.trt.did_fail(self, "deserialize_cuda_engine") else _Engine(self.trt)


class _Engine(_Object):
    def get_device_memory_size_for_profile_v2(self, _profile: int) -> int:
        if self.trt.did_fail(self, "get_device_memory_size_for_profile_v2"):
            return 0
        return ARENA

    def create_runtime_config(self) -> "_Config | None":
        return None if self.trt.did_fail(self, "create_runtime_config") else _Config(self.trt, self.error_recorder)

    def create_execution_context(self, how: Any) -> "_Context | None":
        self.trt.log.append(f"context {how}")
        if isinstance(how, _Config):
            how = how.strategy
        if how != "USER_MANAGED":
            raise Misuse("a context that allocates")
        return None if self.trt.did_fail(self, "create_execution_context") else _Context(self.trt)


class _Config(_Object):
    strategy = "STATIC"
    _graphs, _kernels = "DISABLED", "LAZY"

    def __str__(self) -> str:
        return f"graphs {self._graphs}, kernels {self._kernels}"

    def create_runtime_cache(self) -> "_Cache | None":
        return None if self.trt.did_fail(self, "create_runtime_cache") else _Cache(self.trt, self.error_recorder)

    def set_runtime_cache(self, _cache: "_Cache") -> bool:
        return not self.trt.did_fail(self, "set_runtime_cache")

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    @property
    def cuda_graph_strategy(self) -> str:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: str) -> None:
        if not self.trt.did_fail(self, "cuda_graph_strategy"):  # a property says nothing
            self._graphs = value

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> str:
        return self._kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: str) -> None:
        if not self.trt.did_fail(self, "dynamic_shapes_kernel_specialization_strategy"):
            self._kernels = value


class _Cache(_Object):
    def serialize(self) -> bytes | None:
        return None if self.trt.did_fail(self, "serialize") else self.trt.runtime_cache

    def deserialize(self, _content: bytes) -> bool:
        return not self.trt.did_fail(self, "deserialize")


class _Context(_Object):
    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        if self.trt.did_fail(self, "set_optimization_profile_async") or profile not in range(PROFILES):
            raise RuntimeError("Error in set optimization profile async.")
        return True

    def set_device_memory(self, _memory: int, size: int) -> None:
        if self.trt.did_fail(self, "set_device_memory"):
            return
        if size < ARENA:
            self.error_recorder.report_error(3, f"the memory of {size} bytes is too small")

    def set_input_shape(self, _name: str, _shape: tuple[int, ...]) -> bool:
        return not self.trt.did_fail(self, "set_input_shape")

    def set_tensor_address(self, _name: str, _address: int) -> bool:
        return not self.trt.did_fail(self, "set_tensor_address")

    def execute_async_v3(self, _stream: int) -> bool:
        return not self.trt.did_fail(self, "execute_async_v3")


class _Refitter(_Object):
    max_threads = 0  # TensorRT has 1, until it is set

    def __init__(self, trt: FakeTensorRt) -> None:
        super().__init__(trt)
        self.given: dict[str, SimpleNamespace] = {}
        self.running = 0  # refits on the device

    def set_named_weights(self, name: str, weights: SimpleNamespace) -> bool:
        if self.trt.did_fail(self, "set_named_weights"):
            return False
        kept = self.trt.weights.get(name)
        if kept is None or kept.size != weights.size or kept.dtype.itemsize != np.dtype(weights.dtype).itemsize:
            return False
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return (
            [name for name in self.trt.joined if name not in self.given] if {*self.trt.joined} & {*self.given} else []
        )

    def refit_cuda_engine_async(self, stream: int) -> bool:
        if self.max_threads == 0:
            raise Misuse("one thread alone prepares the weights")
        if self.trt.did_fail(self, "refit_cuda_engine_async") or self.get_missing_weights():
            return False
        self.trt.log[-1] += f" {' '.join(self.given)}"
        for name, weights in self.given.items():  # reads every address that it has
            kept = self.trt.weights[name]
            buffer = (ctypes.c_byte * kept.nbytes).from_address(weights.address)
            self.trt.weights[name] = np.frombuffer(buffer, kept.dtype).reshape(kept.shape).copy()
        self.running += 1
        self.trt.cuda.enqueue(stream, self._end_refit)
        return True

    def unset_named_weights(self, name: str) -> bool:
        if self.running:
            raise Misuse(f"{name} is taken back while a refit may read it")
        return not self.trt.did_fail(self, "unset_named_weights") and self.given.pop(name, None) is not None

    def _end_refit(self) -> None:
        self.running -= 1
