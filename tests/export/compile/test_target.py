"""The choice of a flavor and of GPUs, on machines that this one is not."""

import io
import sys
from types import ModuleType

import pytest
import torch
from rich.console import Console

from engine.errors import BackendUnavailable, BuildError
from export.compile.target import choose_flavor, compute_capabilities, require_refit
from export.progress import BuildProgress


def fake_tensorrt(version: str) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__version__, module.Builder = version, object  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("version", ["11.3.0.12", "11.3.1"])
def test_refittable_plans_of_tensorrt_11_3_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(version))
    with pytest.raises(BackendUnavailable, match=rf"--refittable: tensorrt {version} .*drop biases.*--lora"):
        require_refit("tensorrt", ("9.0",))


@pytest.mark.parametrize("version", ["10.13.3.9", "11.2.1", "11.30.0", "11.4.0"])
def test_refittable_plans_of_other_versions_are_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(version))
    require_refit("tensorrt", ("9.0",))


@pytest.mark.parametrize(
    ("capability", "package", "expected"),
    [
        ((9, 0), None, "onnx, since tensorrt is not installed, which the CUDA device of 9.0 needs: TensorRT-RTX"),
        ((10, 0), None, "onnx, since tensorrt is not installed, which the CUDA device of 10.0 needs: TensorRT-RTX"),
        ((9, 0), fake_tensorrt("11.2"), "tensorrt, since there is a CUDA device and tensorrt is installed"),
        ((8, 9), None, "rtx, since there is a CUDA device of 8.9 and tensorrt_rtx is installed"),
    ],
)
def test_flavor_auto_follows_the_gpu(
    capability: tuple[int, int], package: ModuleType | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    printed = io.StringIO()
    flavor = choose_flavor("auto", False, BuildProgress(Console(file=printed, width=400)))
    assert f"--flavor auto: {expected}" in printed.getvalue()
    assert expected.startswith(flavor)


def test_rtx_plans_for_turing_are_refused_before_anything_is_traced() -> None:
    """TensorRT-RTX 1.7.1: `Cannot compile operation 'node_MatMul_31' for Turing (SM75): FP32 GEMM is not supported`."""
    with pytest.raises(BuildError, match=r"no FP32 matrix products for compute capability 7\.5"):
        compute_capabilities("rtx", ("7.5", "8.9"))
    assert compute_capabilities("rtx", ()) == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert compute_capabilities("rtx", ("8.9",)) == ("8.9",)
