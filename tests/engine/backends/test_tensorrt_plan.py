"""Calls to TensorRT: on the real library as far as it works without a GPU, otherwise on a fake."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorrt_rtx
from fakes.cuda import FakeCuda

from engine.backends.tensorrt.plan import DATA_TYPES, TensorRtPlan
from engine.errors import DeviceError, OutOfDeviceMemory, PlanCorrupt


def test_error_of_the_real_library_is_part_of_the_message(tmp_path: Path) -> None:
    plan = tmp_path / "denoiser.plan"
    plan.write_bytes(b"not a plan " * 100)
    with pytest.raises(PlanCorrupt, match=r"tensorrt_rtx cannot load .*denoiser\.plan: .*magicTag"):
        TensorRtPlan(FakeCuda(), "tensorrt_rtx", plan, runtime_graphs=True, cache=None)


def test_every_called_name_exists_in_the_real_library() -> None:
    trt = tensorrt_rtx
    names = {
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [
            "get_device_memory_size_for_profile_v2",
            "create_execution_context",
            "create_runtime_config",
        ],
        trt.IRuntimeConfig: [
            "create_runtime_cache",
            "set_runtime_cache",
            "set_execution_context_allocation_strategy",
            "cuda_graph_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ],
        trt.IRuntimeCache: ["serialize", "deserialize"],
        trt.IExecutionContext: [
            "set_optimization_profile_async",
            "set_device_memory",
            "set_input_shape",
            "set_tensor_address",
            "execute_async_v3",
        ],
        trt.Refitter: ["set_named_weights", "get_missing_weights", "refit_cuda_engine_async"],
        trt.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
        trt.CudaGraphStrategy: ["WHOLE_GRAPH_CAPTURE", "DISABLED"],
        trt.DynamicShapesKernelSpecializationStrategy: ["EAGER", "LAZY"],
        trt.ILogger: ["ERROR", "INTERNAL_ERROR", "WARNING"],
        trt.DataType: list(DATA_TYPES.values()),
    }
    assert [f"{owner.__name__}.{name}" for owner in names for name in names[owner] if not hasattr(owner, name)] == []
    array = np.arange(3, dtype=ml_dtypes.bfloat16)
    weights = trt.Weights(trt.DataType.BF16, array.ctypes.data, array.size)
    assert (weights.dtype, weights.size) == (trt.DataType.BF16, 3)


class Recorded:
    """Records every call, and returns its entry in `answers`, or True."""

    def __init__(self, log: list[str], answers: dict[str, Any]) -> None:
        self.__dict__.update(_log=log, _answers=answers)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._log.append(f"{name}{args}" if args and all(isinstance(a, int | str) for a in args) else name)
            answer = self._answers.get(name, True)
            return Recorded(self._log, self._answers) if answer is Recorded else answer

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._log.append(f"{name}={value}")


def library(answers: dict[str, Any], log: list[str], *, rtx: bool) -> ModuleType:
    """Return a fake `tensorrt` module."""
    answers = {
        "deserialize_cuda_engine": Recorded,
        "create_execution_context": Recorded,
        "create_runtime_config": Recorded,
        "create_runtime_cache": Recorded,
        "serialize": b"compiled",
        "get_device_memory_size_for_profile_v2": 4096,
        "get_missing_weights": [],
    } | answers
    trt: Any = ModuleType("fake_tensorrt")
    trt.ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2})

    def runtime(logger: Any) -> Recorded:
        trt.logger = logger
        return Recorded(log, answers)

    trt.Runtime = runtime
    trt.Refitter = lambda *_: Recorded(log, answers)
    trt.Weights = lambda data_type, _address, size: f"{data_type} of {size}"
    trt.DataType = SimpleNamespace(HALF="HALF", FLOAT="FLOAT", BF16="BF16")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    if rtx:
        trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE", DISABLED="DISABLED")
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER", LAZY="LAZY")
    return trt


def open_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rtx: bool, cuda: FakeCuda | None = None, **answers: Any
) -> tuple[TensorRtPlan, list[str]]:
    log: list[str] = []
    package = "fake_rtx" if rtx else "fake_tensorrt"
    monkeypatch.setitem(sys.modules, package, library(answers, log, rtx=rtx))
    file = tmp_path / "denoiser.plan"
    file.write_bytes(b"plan")
    cache = tmp_path / "caches" / "denoiser.cache"
    return TensorRtPlan(cuda or FakeCuda(), package, file, runtime_graphs=rtx, cache=cache), log


def test_context_gets_its_profile_and_the_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, log = open_plan(tmp_path, monkeypatch, rtx=False)
    context = plan.create_context(1, (256, 4096), 7, specialized=True)
    context.set_shape("latents", (1, 16, 8, 8))
    context.set_address("latents", 512)
    context.enqueue(7)
    assert log[1:] == [
        "create_execution_context('USER_MANAGED',)",
        "set_optimization_profile_async(1, 7)",
        "set_device_memory(256, 4096)",
        "set_input_shape",
        "set_tensor_address('latents', 512)",
        "execute_async_v3(7,)",
    ]


@pytest.mark.parametrize(("specialized", "kernels"), [(True, "EAGER"), (False, "LAZY")])
def test_rtx_gets_its_compilation_strategy_and_writes_its_kernel_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specialized: bool, kernels: str
) -> None:
    plan, log = open_plan(tmp_path, monkeypatch, rtx=True)
    plan.create_context(0, (256, 4096), 7, specialized=specialized)
    assert "set_execution_context_allocation_strategy('USER_MANAGED',)" in log
    assert "cuda_graph_strategy=WHOLE" in log
    assert f"dynamic_shapes_kernel_specialization_strategy={kernels}" in log
    assert "set_runtime_cache" in log
    plan.close()
    assert (tmp_path / "caches" / "denoiser.cache").read_bytes() == b"compiled"
    _, log = open_plan(tmp_path, monkeypatch, rtx=True)
    assert "deserialize" in log
    plan.close()


def test_unwritable_kernel_cache_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "caches").write_text("in the way")
    plan, _ = open_plan(tmp_path, monkeypatch, rtx=True)
    plan.close()
    assert "compiled again next time" in caplog.text


def test_refit_passes_weights_with_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    plan, log = open_plan(tmp_path, monkeypatch, rtx=False, cuda=cuda)
    plan.refit(
        {"q": np.zeros((2, 3), np.float16), "k": np.zeros(4, ml_dtypes.bfloat16)}, stream := cuda.create_stream()
    )
    assert log[1:] == [
        "set_named_weights('q', 'HALF of 6')",
        "set_named_weights('k', 'BF16 of 4')",
        "get_missing_weights",
        f"refit_cuda_engine_async({stream},)",
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"set_named_weights": False}, "refuses new values for q"),
        ({"get_missing_weights": ["v"]}, "refuses a refit without v"),
        ({"refit_cuda_engine_async": False}, "refuses to refit"),
    ],
)
def test_refused_refit_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], message: str
) -> None:
    plan, _ = open_plan(tmp_path, monkeypatch, rtx=False, **answer)
    with pytest.raises(DeviceError, match=message):
        plan.refit({"q": np.zeros((2, 3), np.float16)}, 7)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("set_optimization_profile_async", "refuses profile 0"),
        ("set_input_shape", r"refuses the shape \(1,\) of sigma"),
        ("set_tensor_address", "refuses the address of sigma"),
        ("execute_async_v3", "refuses to run: too bad; really"),
    ],
)
def test_refused_calls_raise_with_tensorrts_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str
) -> None:
    plan, _ = open_plan(tmp_path, monkeypatch, rtx=False, **{function: False})
    logger = sys.modules["fake_tensorrt"].logger
    logger.log(1, "too bad")
    logger.log(2, "only a warning")
    logger.log(1, "really")
    with pytest.raises(DeviceError, match=message):
        context = plan.create_context(0, (256, 4096), 7, specialized=False)
        context.set_shape("sigma", (1,))
        context.set_address("sigma", 512)
        context.enqueue(7)


def test_refusal_with_a_lost_context_raises_a_sticky_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    plan, _ = open_plan(tmp_path, monkeypatch, rtx=False, cuda=cuda, execute_async_v3=False)
    context = plan.create_context(0, (256, 4096), 7, specialized=False)
    cuda.fails["require_context"] = "cudaErrorLaunchFailure"
    with pytest.raises(DeviceError, match="replace the process") as lost:
        context.enqueue(7)
    assert lost.value.sticky


def test_weights_that_do_not_fit_raise_out_of_device_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Recorded):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            sys.modules["fake_tensorrt"].logger.log(1, "Cuda Runtime (Out of memory)")
            return lambda *_: None

    trt = library({}, [], rtx=False)
    runtime = trt.Runtime
    trt.Runtime = lambda logger: (runtime(logger), Full([], {}))[1]
    monkeypatch.setitem(sys.modules, "fake_tensorrt", trt)
    (tmp_path / "denoiser.plan").write_bytes(b"plan")
    with pytest.raises(
        OutOfDeviceMemory, match=r"denoiser\.plan, since GPU memory is full: .*Out of memory.*--offload"
    ):
        TensorRtPlan(FakeCuda(), "fake_tensorrt", tmp_path / "denoiser.plan", runtime_graphs=False, cache=None)
