"""Errors for CUDA's statuses. The library itself is faked, since CI has no GPU."""

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.backends import cuda
from engine.backends.cuda import STICKY, CudaRuntime, failure
from engine.errors import BackendUnavailable, DeviceError, OutOfDeviceMemory


class Status(Enum):
    cudaSuccess = 0
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700


class Library:
    """The part of cuda-bindings' runtime that the constructor of CudaRuntime calls."""

    cudaStreamNonBlocking = 1
    answer = Status.cudaSuccess  # of cudaStreamQuery

    def __init__(self, driver: int = 13010, ours: int = 13050, device: Status = Status.cudaSuccess) -> None:
        self.driver, self.ours, self.device = driver, ours, device

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return Status.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return Status.cudaSuccess, self.ours

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        assert index == 0
        return (self.device,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        return Status.cudaSuccess, 7

    def cudaStreamQuery(self, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        return (self.answer,)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return (Status.cudaSuccess if address == 0 else Status.cudaErrorIllegalAddress,)


def open_with(monkeypatch: pytest.MonkeyPatch, library: Library) -> CudaRuntime:
    import cuda.bindings

    monkeypatch.setattr(cuda.bindings, "runtime", library, raising=False)
    return CudaRuntime()


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (Library(driver=0), "no NVIDIA driver is installed"),
        (Library(driver=12080), r"the driver is for CUDA 12\.8, .* CUDA 13\.5; install a newer .* or cuda-bindings 12"),
        (Library(device=Status.cudaErrorNoDevice), "cudaSetDevice: cudaErrorNoDevice"),
    ],
)
def test_unusable_driver_or_device_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, library: Library, message: str
) -> None:
    with pytest.raises(BackendUnavailable, match=message) as refusal:
        open_with(monkeypatch, library)
    assert "serve plans built with: build-engines --flavor onnx" in str(refusal.value)


def test_driver_is_named_by_its_version_where_the_system_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(cuda, "DRIVER_FILE", file)
    opened = open_with(monkeypatch, Library(driver=13000))
    assert opened.driver() == "for CUDA 13.0"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12"
    )
    assert opened.driver() == "580.65.06 for CUDA 13.0"


@pytest.mark.parametrize(("driver", "version"), [(13000, "13.0"), (13050, "13.5"), (14000, "14.0")])
def test_driver_of_the_same_major_version_or_newer_is_accepted(
    monkeypatch: pytest.MonkeyPatch, driver: int, version: str
) -> None:
    assert open_with(monkeypatch, Library(driver=driver)).driver().endswith(f"for CUDA {version}")


def test_missing_cuda_bindings_name_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", SimpleNamespace())
    with pytest.raises(BackendUnavailable, match="pip install cuda-bindings"):
        CudaRuntime()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_machine_without_a_driver_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver is installed"):
        CudaRuntime()


def test_illegal_address_is_sticky_and_asks_to_replace_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = open_with(monkeypatch, Library())
    with pytest.raises(DeviceError, match=r"cudaFree: cudaErrorIllegalAddress; .*replace the process") as lost:
        runtime.free(1)
    assert lost.value.sticky


def test_context_lost_by_another_library_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT has its own copy of the CUDA runtime, whose errors ours does not report."""
    runtime = open_with(monkeypatch, library := Library())
    for answer in (Status.cudaSuccess, Status.cudaErrorNotReady):
        library.answer = answer
        runtime.require_context()
    library.answer = Status.cudaErrorIllegalAddress
    with pytest.raises(DeviceError, match="replace the process"):
        runtime.require_context()


def test_out_of_memory_is_not_sticky_and_names_the_requested_size() -> None:
    error = failure("cudaMalloc", "cudaErrorMemoryAllocation", (2_500_000_000,))
    assert isinstance(error, OutOfDeviceMemory)
    assert not error.sticky
    assert "cudaMalloc of 2.50 GB failed" in str(error)


def test_every_sticky_error_exists_in_cuda_bindings() -> None:
    from cuda.bindings import runtime

    assert {error.name for error in runtime.cudaError_t} >= STICKY


def test_every_called_function_exists_and_accepts_its_arguments() -> None:
    """Without a driver each call fails with a CUDA error; a wrong name or type would raise another exception."""
    from cuda.bindings import runtime

    cuda = object.__new__(CudaRuntime)
    cuda._runtime = runtime
    if torch.cuda.is_available():
        pytest.skip("on a GPU these would do something")
    calls = [
        cuda.compute_capability,
        cuda.name,
        cuda.memory_info,
        lambda: cuda.allocate(256),
        lambda: cuda.free(256),
        lambda: cuda.allocate_host(256),
        lambda: cuda.free_host(256),
        lambda: cuda.copy(256, 512, 256, 1),
        cuda.create_stream,
        lambda: cuda.destroy_stream(1),
        lambda: cuda.synchronize(1),
        cuda.create_event,
        lambda: cuda.destroy_event(1),
        lambda: cuda.record(1, 1),
        lambda: cuda.wait(1),
        lambda: cuda.make_wait(1, 1),
        lambda: cuda.seconds(1, 1),
        lambda: cuda.begin_capture(1),
        lambda: cuda.end_capture(1),
        lambda: cuda.launch(1, 1),
        lambda: cuda.destroy_graph(1),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match=r"cudaError(InsufficientDriver|InvalidResourceHandle|InvalidValue)"):
            call()
