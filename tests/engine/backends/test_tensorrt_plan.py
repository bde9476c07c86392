"""Calls to TensorRT: on the real library as far as it works without a GPU, otherwise on a fake of its bindings."""

import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorrt_rtx
from fakes.cuda import FakeCuda
from fakes.tensorrt import ARENA, FakeTensorRt

from engine.backends.tensorrt import plan as plan_module
from engine.backends.tensorrt.errors import Refusals
from engine.backends.tensorrt.plan import DATA_TYPES, TensorRtPlan
from engine.errors import BackendUnavailable, DeviceError, OutOfDeviceMemory, PlanCorrupt

WEIGHTS = {name: np.full((2, 3), value, np.float16) for value, name in enumerate("qkv")}


def test_error_of_the_real_library_is_part_of_the_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "denoiser.plan"
    plan.write_bytes(b"not a plan " * 100)
    with pytest.raises(PlanCorrupt, match=r"tensorrt_rtx cannot load .*denoiser\.plan: .*magicTag"):
        TensorRtPlan(FakeCuda(), "tensorrt_rtx", plan, runtime_graphs=True, cache=None)
    assert capfd.readouterr() == ("", ""), "errors go to the recorder alone"


def test_recorder_of_the_real_library_counts_and_keeps_words() -> None:
    recorder = Refusals(tensorrt_rtx, FakeCuda()).recorder
    assert isinstance(recorder, tensorrt_rtx.IErrorRecorder)
    for number in range(200):
        recorder.report_error(tensorrt_rtx.ErrorCodeTRT.FAILED_EXECUTION, f"error {number}")
    count = tensorrt_rtx.IErrorRecorder.num_errors(recorder)  # by way of C++, as TensorRT asks
    assert (count, recorder.has_overflowed(), recorder.get_error_desc(count - 1)) == (100, True, "error 99")
    recorder.clear()
    assert tensorrt_rtx.IErrorRecorder.num_errors(recorder) == 0


def test_every_called_name_exists_in_the_real_library() -> None:
    trt = tensorrt_rtx
    names = {
        trt.Runtime: ["deserialize_cuda_engine", "error_recorder"],
        trt.ICudaEngine: [
            "get_device_memory_size_for_profile_v2",
            "create_execution_context",
            "create_runtime_config",
            "error_recorder",
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
            "error_recorder",
        ],
        trt.Refitter: [
            "set_named_weights",
            "unset_named_weights",
            "get_missing_weights",
            "refit_cuda_engine_async",
            "max_threads",
            "error_recorder",
        ],
        trt.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
        trt.CudaGraphStrategy: ["WHOLE_GRAPH_CAPTURE", "DISABLED"],
        trt.DynamicShapesKernelSpecializationStrategy: ["EAGER", "LAZY"],
        trt.Logger: ["WARNING"],
        trt.ErrorCodeTRT: ["UNSPECIFIED_ERROR"],
        trt.DataType: list(DATA_TYPES.values()),
    }
    assert [f"{owner.__name__}.{name}" for owner in names for name in names[owner] if not hasattr(owner, name)] == []
    array = np.arange(3, dtype=ml_dtypes.bfloat16)
    weights = trt.Weights(trt.DataType.BF16, array.ctypes.data, array.size)
    assert (weights.dtype, weights.size) == (trt.DataType.BF16, 3)


def open_plan(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trt: FakeTensorRt,
    *,
    rtx: bool = False,
) -> TensorRtPlan:
    package = "fake_rtx" if rtx else "fake_tensorrt"
    monkeypatch.setitem(sys.modules, package, trt)
    file = tmp_path / "denoiser.plan"
    file.write_bytes(b"plan")
    cache = tmp_path / "caches" / "denoiser.cache"
    return TensorRtPlan(trt.cuda, package, file, runtime_graphs=rtx, cache=cache)


def use(plan: TensorRtPlan, arena: int = ARENA) -> None:
    """Make every call of a context."""
    context = plan.create_context(1, (256, arena), 7, specialized=True)
    context.set_shape("latents", (1, 16, 8, 8))
    context.set_address("latents", 512)
    context.enqueue(7)


def test_context_gets_its_profile_and_the_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRt()
    use(open_plan(tmp_path, monkeypatch, trt))
    assert trt.log == [
        "deserialize_cuda_engine",
        "context USER_MANAGED",
        "create_execution_context",
        "set_optimization_profile_async",
        "set_device_memory",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
    ]


@pytest.mark.parametrize(("specialized", "kernels"), [(True, "EAGER"), (False, "LAZY")])
def test_rtx_gets_its_compilation_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specialized: bool, kernels: str
) -> None:
    trt = FakeTensorRt()
    plan = open_plan(tmp_path, monkeypatch, trt, rtx=True)
    plan.create_context(0, (256, ARENA), 7, specialized=specialized)
    assert f"context graphs WHOLE, kernels {kernels}" in trt.log


def test_kernels_are_written_when_there_are_new_ones_and_read_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt, file = FakeTensorRt(), tmp_path / "caches" / "denoiser.cache"
    plan = open_plan(tmp_path, monkeypatch, trt, rtx=True)
    plan.save_kernels()
    assert not file.exists(), "nothing ran"
    use(plan)
    plan.save_kernels()
    assert file.read_bytes() == b"compiled"
    plan.save_kernels()
    assert trt.calls["serialize"] == 1, "nothing new"
    use(plan)
    file.unlink()
    plan.save_kernels()
    assert not file.exists(), "the same kernels are not written again"
    trt.runtime_cache = b"more, in the background"
    plan.close()
    assert file.read_bytes() == b"more, in the background"
    written = file.stat().st_mtime_ns
    open_plan(tmp_path, monkeypatch, trt, rtx=True).close()
    assert trt.calls["deserialize"] == 1 and file.stat().st_mtime_ns == written


def test_closed_plan_refers_to_no_object_of_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT frees what nothing refers to."""
    plan = open_plan(tmp_path, monkeypatch, FakeTensorRt(), rtx=True)
    owned = [weakref.ref(each) for each in (plan._engine, plan._cache, plan._runtime)]
    plan.close()
    assert [each() for each in owned] == [None] * 3


@pytest.mark.parametrize("fails", [{"serialize": "no memory"}, {}], ids=["not serialized", "unwritable"])
def test_kernels_that_cannot_be_written_only_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: dict[str, str]
) -> None:
    if not fails:
        (tmp_path / "caches").write_text("in the way")
    open_plan(tmp_path, monkeypatch, FakeTensorRt(fails=fails), rtx=True).close()
    assert "compiled again next time" in caplog.text
    assert all(words in caplog.text for words in fails.values())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("deserialize_cuda_engine", "cannot load .*denoiser.plan: too bad"),
        ("get_device_memory_size_for_profile_v2", "refuses profile 1: too bad"),
        ("create_runtime_config", "refuses to create a runtime configuration: too bad"),
        ("create_runtime_cache", "refuses to create a runtime cache: too bad"),
        ("set_runtime_cache", "refuses its runtime cache: too bad"),
        ("cuda_graph_strategy", "refuses cuda_graph_strategy WHOLE: too bad"),
        ("dynamic_shapes_kernel_specialization_strategy", "refuses dynamic_shapes.* EAGER: too bad"),
        ("create_execution_context", "refuses to create an execution context: too bad"),
        ("set_optimization_profile_async", "refuses profile 1: too bad"),
        ("set_device_memory", "refuses an arena of 4096 bytes: too bad"),
        ("set_input_shape", r"refuses the shape \(1, 16, 8, 8\) of latents: too bad"),
        ("set_tensor_address", "refuses the address of latents: too bad"),
        ("execute_async_v3", "refuses to run: too bad"),
        ("Refitter", "cannot change the plan's weights: too bad"),
        ("set_named_weights", "refuses new values for q: too bad"),
        ("refit_cuda_engine_async", "refuses to refit: too bad"),
        ("unset_named_weights", "refuses to forget q: too bad"),
    ],
)
def test_refused_calls_raise_with_tensorrts_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str
) -> None:
    """A call that fails by returning False or None, by raising, or in silence."""
    trt = FakeTensorRt(fails={function: "too bad"}, weights=dict(WEIGHTS))
    with pytest.raises((DeviceError, PlanCorrupt), match=message):
        plan = open_plan(tmp_path, monkeypatch, trt, rtx=True)
        plan.activation_bytes(1)
        use(plan)
        refit(plan, WEIGHTS)
    assert trt.calls[function] == 1


def test_arena_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="refuses an arena of 4095 bytes: the memory of 4095 bytes is too small"):
        use(open_plan(tmp_path, monkeypatch, FakeTensorRt()), ARENA - 1)


def test_earlier_error_is_not_taken_for_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = open_plan(tmp_path, monkeypatch, FakeTensorRt())
    plan._refusals.recorder.report_error(1, "from a thread that compiles")
    use(plan)
    assert plan.activation_bytes(0) == ARENA


def test_runtime_that_does_not_start_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match=r"fake_tensorrt does not start; .*newer driver"):
        open_plan(tmp_path, monkeypatch, FakeTensorRt(fails={"Runtime": ""}))


@pytest.mark.parametrize("content", [b"", None])
def test_plan_that_cannot_be_read_is_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setitem(sys.modules, "fake_tensorrt", FakeTensorRt())
    file = tmp_path / "denoiser.plan"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PlanCorrupt, match=r"cannot read .*denoiser\.plan: .*; build again"):
        TensorRtPlan(FakeCuda(), "fake_tensorrt", file, runtime_graphs=False, cache=None)


def test_refusal_with_a_lost_context_raises_a_sticky_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRt(fails={"execute_async_v3": "illegal access"})
    plan = open_plan(tmp_path, monkeypatch, trt)
    trt.cuda.fails["require_context"] = "cudaErrorLaunchFailure"
    with pytest.raises(DeviceError, match=r"refuses to run: illegal access; .*replace the process") as lost:
        use(plan)
    assert lost.value.sticky


def test_weights_that_do_not_fit_raise_out_of_device_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRt(fails={"deserialize_cuda_engine": "Cuda Runtime (Out of memory)"})
    with pytest.raises(
        OutOfDeviceMemory, match=r"denoiser\.plan, since GPU memory is full: .*Out of memory.*--offload"
    ):
        open_plan(tmp_path, monkeypatch, trt)


# weights


def refit(plan: TensorRtPlan, weights: dict[str, np.ndarray]) -> int:
    """Give weights that exist only for a moment, and return the number of portions."""

    def fleeting() -> Iterator[tuple[str, Any]]:
        for name, array in weights.items():
            yield name, array.copy()

    return sum(1 for _ in plan.refit(fleeting(), plan._cuda.create_stream()))


def test_weights_are_given_in_portions_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PORTION", 2 * WEIGHTS["q"].nbytes)
    trt = FakeTensorRt(weights={name: np.zeros((2, 3), np.float16) for name in WEIGHTS})
    plan = open_plan(tmp_path, monkeypatch, trt)
    assert refit(plan, WEIGHTS) == 2
    assert [entry for entry in trt.log if "refit" in entry] == [
        "refit_cuda_engine_async q k",  # and not again with the second portion: their memory is gone
        "refit_cuda_engine_async v",
    ]
    assert all(np.array_equal(trt.weights[name], WEIGHTS[name]) for name in WEIGHTS)


def test_weights_that_tensorrt_has_joined_come_in_one_portion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "PORTION", 1)
    trt = FakeTensorRt(weights=dict(WEIGHTS), joined=("q", "k"))
    plan = open_plan(tmp_path, monkeypatch, trt)
    assert refit(plan, WEIGHTS) == 2
    assert "refit_cuda_engine_async q k" in trt.log
    with pytest.raises(DeviceError, match="refuses a refit without k"):
        refit(plan, {"q": WEIGHTS["q"]})


def test_bfloat16_weights_are_given_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRt(weights={"q": np.zeros(4, np.uint16)})
    refit(open_plan(tmp_path, monkeypatch, trt), {"q": np.arange(4, dtype=ml_dtypes.bfloat16)})
    assert np.array_equal(trt.weights["q"].view(ml_dtypes.bfloat16), np.arange(4))
