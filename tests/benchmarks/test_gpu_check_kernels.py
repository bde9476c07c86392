"""The CUDA half of gpu-check on the fake device: what is right passes, and each planted fault is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.cuda_kernels import NEEDS_COMPILER, ThreadSafeCuda, kernel_device

from benchmarks.gpu.cuda import calls, images, loop, memory
from benchmarks.gpu.cuda.kernel_plan import KernelDevice
from benchmarks.gpu.cuda.kernel_source import SOURCE
from benchmarks.gpu.findings import CheckFailed, Figures, Findings
from engine.errors import DeviceError

pytestmark = NEEDS_COMPILER


def run_calls(device: KernelDevice, found: Findings) -> None:
    calls.run_cases(device, found, 1 << 16)


def run_images(device: KernelDevice, found: Findings) -> None:
    images.run_cases(device, found, quick=True)


def run_loop(device: KernelDevice, found: Findings) -> None:
    loop.run_cases(device, found, quick=True)


def run_memory(device: KernelDevice, found: Findings) -> None:
    memory.run_memory(device, found, quick=True)


def run_lost(device: KernelDevice, found: Findings) -> None:
    memory.run_lost(device, found, quick=True)


Run = Callable[[KernelDevice, Findings], None]


@pytest.mark.parametrize("eagerness", [0.0, 0.9])
@pytest.mark.parametrize("run", [run_calls, run_images, run_loop, run_memory])
def test_right_device_passes_and_nothing_leaks(run: Run, eagerness: float, tmp_path: Path) -> None:
    cuda, found = ThreadSafeCuda(eagerness=eagerness), Findings(tmp_path / "x.json")
    run(kernel_device(cuda, tmp_path), found)
    assert found.figures["answer"].startswith("yes")
    assert not cuda.leaks


def test_lost_context_is_noticed_and_closing_ends(tmp_path: Path) -> None:
    found = Findings(tmp_path / "x.json")
    run_lost(kernel_device(ThreadSafeCuda(), tmp_path), found)
    assert found.figures["sticky"] is True


class NoWait(ThreadSafeCuda):
    """A stream does not wait for another one's event."""

    def make_wait(self, stream: int, event: int) -> None:
        del stream, event


class NoFree(ThreadSafeCuda):
    """Freed memory does not come back."""

    def free(self, address: int) -> None:
        self._kept = [*getattr(self, "_kept", []), address]

    def memory_info(self) -> tuple[int, int]:
        return FakeCuda.memory_info(self)


class EagerCapture(ThreadSafeCuda):
    """A capture runs the work that it captures."""

    def end_capture(self, stream: int) -> int:
        graph = FakeCuda.end_capture(self, stream)
        FakeCuda.launch(self, graph, stream)
        return graph


@pytest.mark.parametrize(
    ("cuda", "run", "failed"),
    [
        (NoWait(eagerness=0.0, seed=1), run_calls, "order_of_streams"),
        (NoWait(eagerness=0.0, seed=3), run_images, "cuda_graphs_off"),
        (NoFree(), run_memory, "freed"),
        (EagerCapture(), run_calls, "cuda_graph"),
    ],
)
def test_wrong_device_is_found(cuda: ThreadSafeCuda, run: Run, failed: str, tmp_path: Path) -> None:
    found = Findings(tmp_path / "x.json")
    with pytest.raises(CheckFailed):
        run(kernel_device(cuda, tmp_path), found)
    assert "failed" in found.figures[failed]


BATCHES, NOT_FINITE, GUIDED = images.Bench.batches, images.Bench.not_finite, loop.warmed


@pytest.mark.parametrize(
    ("case", "right", "wrong", "failed"),
    [
        (BATCHES, "0.25f * next", "0.2500001f * next", "latents differ from numpy's"),  # one rounding
        (BATCHES, "latents[row * sample + (at + 1) % sample]", "latents[(i + 1) % n]", "row 0 of 2: .* latents differ"),
        (BATCHES, "tint[at / channel * 4 + at % 4]", "tint[at % 4]", "latents differ"),  # weights at the wrong place
        (BATCHES, "+ 0.5f);", "+ 0.6f);", "pixels differ from numpy's, by up to 1$"),
        (BATCHES, "int at = i; at < count", "int at = i + n; at < count", "its mean is .*, numpy's"),
        (NOT_FINITE, "total / (float)count", "total < 1e30f ? total / (float)count : 0.0f", "nan .* was not noticed"),
        (GUIDED, "scale[i / sample] *", "1.5f *", "image 0: .* pixels differ"),
    ],
)
def test_wrong_kernel_is_found(
    case: Callable[[images.Bench], Figures], right: str, wrong: str, failed: str, tmp_path: Path
) -> None:
    assert SOURCE.count(right) == 1
    device = kernel_device(ThreadSafeCuda(), tmp_path, SOURCE.replace(right, wrong))
    with images.open_bench(device, quick=True) as bench, pytest.raises(CheckFailed, match=failed):
        case(bench)


@pytest.mark.parametrize(("module", "case"), [(images, images.Bench.warm_up), (loop, GUIDED)])
def test_size_that_is_not_warmed_up_is_found(
    module: object, case: Callable[[images.Bench], Figures], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "warm_up", lambda *_: None)
    device = kernel_device(ThreadSafeCuda(), tmp_path)
    with images.open_bench(device, quick=True) as bench, pytest.raises(CheckFailed, match=r"needs? contexts"):
        case(bench)


@pytest.mark.parametrize(("capability", "start"), [("8.9", b"\x7fELF"), ("9.0", b"\x7fELF"), ("99.0", b"//")])
def test_kernels_compile_for_gpus_and_for_those_that_nvrtc_does_not_know(capability: str, start: bytes) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", exc_type=ImportError)
    from benchmarks.gpu.cuda.nvrtc import compile_kernels

    try:
        code = compile_kernels(capability)
    except DeviceError:
        raise
    except Exception as error:  # noqa: BLE001  cuda-pathfinder's own kind
        pytest.skip(f"NVRTC is not installed: {error}")
    assert code.startswith(start)
