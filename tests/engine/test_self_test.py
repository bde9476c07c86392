"""The self-test finds devices that compute something else, and never refuses right plans.

Wrong kernels run on the fake device, and in ONNX files that were changed. Right ones round as a GPU does, or have
random weights.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import FakeCuda
from fakes.faulty_graphs import GRAPH_FAULTS, GraphFault, plant
from fakes.plan import Kernel, load_fakes
from fakes.random_plans import random_plans

from benchmarks.harness.evaluator import StrictEvaluator
from engine import pipeline, self_test
from engine.backends.base import Backend
from engine.backends.host_memory import HostMemory
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.errors import PlanCorrupt, SelfTestFailed
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import MANIFEST_FILE, encode, read
from engine.plan.manifest import ExpectedTensor, GraphName, Manifest, Target
from engine.plan.probes import PROBES_FILE, Distance

SEEDS = int(os.environ.get("SELF_TEST_SEEDS", "2"))  # a hundred were run by hand: docs/findings.md


@dataclass
class Nano:
    """The plans of z-image-nano, run by ONNX Runtime on the fake device."""

    directory: Path
    manifest: Manifest
    kernels: dict[GraphName, Kernel]

    def on(self, cuda: FakeCuda, kernels: Mapping[GraphName, Kernel] | None = None, **options: object) -> Backend:
        chosen = self.kernels | dict(kernels or {})
        return load_fakes(cuda, chosen, self.directory, self.manifest, RuntimeOptions(**options))

    def fault(self, kernels: Mapping[GraphName, Kernel], **options: object) -> str:
        """Return the message that refuses these kernels."""
        backend = self.on(FakeCuda(seed=1), kernels, **options)
        with closing(backend), pytest.raises(SelfTestFailed) as refusal:
            self_test.require(self.directory, self.manifest, backend)
        return str(refusal.value)


def kernel(path: Path, manifest: Manifest, graph: GraphName) -> Kernel:
    engine = OnnxRuntimeEngine(path, manifest.graphs[graph], threads=1)

    def run(tensors: Mapping[str, np.ndarray]) -> None:
        engine.enqueue(0, {key: array.copy() if array.base is None else array for key, array in tensors.items()})

    return run


@pytest.fixture(scope="module")
def nano(plan_directory: Path) -> Nano:
    manifest = read(plan_directory)
    kernels = {name: kernel(plan_directory / graph.file, manifest, name) for name, graph in manifest.graphs.items()}
    return Nano(plan_directory, manifest, kernels)


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": "on"}, {"offload": True}])
def test_right_plans_pass_on_a_device(nano: Nano, options: dict[str, object]) -> None:
    cuda = FakeCuda(seed=2)
    with closing(nano.on(cuda, **options)) as backend:
        started = time.perf_counter()
        results = list(self_test.run(nano.directory, nano.manifest, backend))
        print(f"{options}: {time.perf_counter() - started:.2f} s")
    assert [result.fault for result in results] == [None] * len(results)
    probes = [probe for graph in nano.manifest.graphs.values() for probe in graph.probes]
    assert len(results) == sum(len(probe.outputs) for probe in probes) and len(probes) >= 12
    assert {result.graph for result in results} == set(nano.manifest.graphs)
    assert max(result.found.whole / result.allowed.whole for result in results) < 0.01, "FP32 is far from its limit"
    assert not cuda.leaks


# The last of these that a graph has is its output.
OUTPUTS = ("prompt_embeds", "latents_next", "image", "image_latents", "latents_blended")


def output_of(tensors: Mapping[str, np.ndarray], names: tuple[str, ...] = OUTPUTS) -> np.ndarray:
    *_, output = (tensors[name] for name in names if name in tensors)
    return output


def after(change: Callable[[np.ndarray], None]) -> Callable[[Kernel], Kernel]:
    """A kernel that changes what the right one gives."""

    def faulty(right: Kernel) -> Kernel:
        def run(tensors: dict[str, np.ndarray]) -> None:
            right(tensors)
            change(output_of(tensors))

        return run

    return faulty


def scaled(output: np.ndarray) -> None:
    larger = output * 1.05
    output[...] = np.minimum(larger, 255) if output.dtype == np.uint8 else larger


def zeros(output: np.ndarray) -> None:
    output[...] = 0


def wrong_token(output: np.ndarray) -> None:
    """The last token of prompt_embeds, patch of latents or square of an image has the values of another."""
    if output.ndim == 3:
        output[-1, -1] = output[-1, 0]
    elif output.shape[-1] == 3:
        output[-1, -16:, -16:] = output[-1, :16, :16]
    else:
        output[-1, :, -2:, -2:] = output[-1, :, :2, :2]


def with_nan(right: Kernel) -> Kernel:
    """A kernel with one NaN in its result; the image has no NaN, but its mean does."""

    def run(tensors: dict[str, np.ndarray]) -> None:
        right(tensors)
        output_of(tensors, (*OUTPUTS, "image_mean")).flat[-1] = np.nan

    return run


def stale(_right: Kernel) -> Kernel:
    return lambda _tensors: None


def stale_after_the_first(right: Kernel) -> Kernel:
    """A kernel that writes once, and later leaves what is in the buffer."""
    calls = []

    def run(tensors: dict[str, np.ndarray]) -> None:
        calls.append(1)
        if len(calls) == 1:
            right(tensors)

    return run


def mixed_up(right: Kernel) -> Kernel:
    """A kernel that takes height for width, as if the context had the shapes of another profile."""

    def run(tensors: dict[str, np.ndarray]) -> None:
        turned = {}
        for name, tensor in tensors.items():
            batch, *rest = tensor.shape
            if name in ("latents", "latents_next", "posterior_noise", "image_latents"):
                turned[name] = tensor.reshape(batch, 16, rest[2], rest[1])
            elif name in ("image", "init_image"):
                turned[name] = tensor.reshape(batch, rest[1], rest[0], 3)
            else:
                turned[name] = tensor
        right(turned)

    return run


KERNEL_FAULTS: dict[str, tuple[Callable[[Kernel], Kernel], str]] = {
    "scaled": (after(scaled), r"relative L2 [45]\.\de-02, at most 1\.0e-03 is allowed"),
    "zeros": (after(zeros), "it gives zeros only"),
    "NaN": (with_nan, "of its output are NaN or Inf"),
    "one token wrong": (after(wrong_token), "relative L2"),
    "stale buffer": (stale, "it writes nothing"),
    "stale after the first run": (stale_after_the_first, "it writes nothing"),
}


@pytest.mark.parametrize("graph", ["prompt_encoder", "denoiser", "vae_decoder", "vae_encoder", "blend"])
@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_wrong_kernel_is_refused_by_the_name_of_its_graph(nano: Nano, graph: GraphName, fault: str) -> None:
    faulty, words = KERNEL_FAULTS[fault]
    said = nano.fault({graph: faulty(nano.kernels[graph])})
    assert f"computes the {graph} wrongly" in said
    assert re.search(words, said), said


@pytest.mark.parametrize("graph", ["denoiser", "vae_decoder", "vae_encoder"])
def test_kernel_with_the_shapes_of_another_profile_is_refused(nano: Nano, graph: GraphName) -> None:
    assert "probe 'profile large'" in nano.fault({graph: mixed_up(nano.kernels[graph])})


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_wrong_attention_is_refused(nano: Nano, tmp_path: Path, fault: str) -> None:
    planted = GRAPH_FAULTS[fault]
    path = plant(planted, nano.directory, tmp_path)
    said = nano.fault({planted.graph: kernel(path, nano.manifest, planted.graph)})
    assert f"computes the {planted.graph} wrongly: relative L2" in said


@pytest.fixture(scope="module")
def fp16(
    plan_directory: Path,
    build_plans: object,  # noqa: ARG001  from here on, graphs are traced once
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("fp16")
    return folder, random_plans(1000, "fp16", plan_directory, folder)


def strict(folder: Path, manifest: Manifest, fault: GraphFault | None, changed: Path) -> list[self_test.Result]:
    """The self-test of engines that round as a GPU does."""
    graphs = dict(manifest.graphs) if fault is None else {fault.graph: manifest.graphs[fault.graph]}
    files = {name: folder / f"{name}.onnx" for name in graphs}
    if fault is not None:
        files[fault.graph] = plant(fault, folder, changed)
    engines = {name: StrictEvaluator(file) for name, file in files.items()}
    backend = Backend(HostMemory(manifest, manifest.profiles), engines)
    return list(self_test.run(folder, replace(manifest, graphs=graphs), backend))


def test_fp16_that_rounds_as_a_gpu_does_passes(fp16: tuple[Path, Manifest], tmp_path: Path) -> None:
    results = strict(*fp16, None, tmp_path)
    assert [result.fault for result in results] == [None] * len(results) and len(results) >= 12
    assert max(result.found.whole for result in results if result.graph == "denoiser") > 1e-4, "it does not round"


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_wrong_attention_in_fp16_is_refused(fp16: tuple[Path, Manifest], tmp_path: Path, fault: str) -> None:
    assert all(result.fault for result in strict(*fp16, GRAPH_FAULTS[fault], tmp_path))


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.usefixtures("build_plans")
def test_right_plans_of_random_weights_pass(plan_directory: Path, tmp_path: Path, seed: int) -> None:
    manifest = random_plans(seed, "fp32", plan_directory, tmp_path)
    engines = {name: OnnxRuntimeEngine(tmp_path / g.file, g, threads=1) for name, g in manifest.graphs.items()}
    results = list(self_test.run(tmp_path, manifest, Backend(HostMemory(manifest, manifest.profiles), engines)))
    assert [result.fault for result in results] == [None] * len(results) and len(results) >= 12


def test_limits_follow_from_the_cost_of_rounding_and_from_what_sums() -> None:
    cheap, costly = ExpectedTensor("key", 1e-6, 2e-6), ExpectedTensor("key", 1e-2, 2e-2)
    assert self_test.allowed(cheap, "fp16", "fp32") == self_test.FLOORS["fp16"]
    assert self_test.allowed(costly, "fp16", "fp32") == Distance(4e-2, pytest.approx(16e-2), 3e-3)
    assert self_test.allowed(costly, "fp16", "fp16").whole == pytest.approx(32e-2)
    assert self_test.allowed(costly, "bf16", "fp16") == self_test.allowed(costly, "bf16", "fp32")


def test_only_the_denoiser_may_sum_in_fp16(fp16: tuple[Path, Manifest]) -> None:
    _, manifest = fp16
    plans = replace(manifest, accumulation="fp16")
    wider = {}
    for name, graph in plans.graphs.items():
        probe = graph.probes[0]
        output, *_ = probe.outputs.values()
        values = {key: np.ones((1, 4, 4), np.float32) for key in probe.outputs}
        [result, *_] = self_test._results(plans, name, probe, values, values)
        wider[name] = result.allowed != self_test.allowed(output, graph.precision, "fp32")
    assert wider == {name: name == "denoiser" for name in plans.graphs}


def test_only_probes_of_loaded_profiles_run(nano: Nano) -> None:
    served = replace(nano.manifest, profiles=nano.manifest.profiles[:1])
    with closing(nano.on(FakeCuda(), profiles=(served.profiles[0].name,))) as backend:
        names = {result.probe for result in self_test.run(nano.directory, served, backend)}
    assert "smallest" in names and "profile large" not in names


@pytest.fixture
def tensorrt_plans(plan_directory: Path, tmp_path: Path) -> Path:
    """The plans of z-image-nano with a manifest that says TensorRT-RTX."""
    directory = shutil.copytree(plan_directory, tmp_path / "plans")
    target = Target("rtx", "tensorrt_rtx 1.7.1.116", ("8.9",))
    (directory / MANIFEST_FILE).write_bytes(encode(replace(read(directory), target=target)))
    return directory


def test_loading_refuses_wrong_plans_and_names_the_device(
    nano: Nano, tensorrt_plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, wrong = FakeCuda(), {"denoiser": after(zeros)(nano.kernels["denoiser"])}

    def load(*_: object) -> Backend:
        return replace(nano.on(cuda, wrong), device="NVIDIA GeForce RTX 5090, driver 580.65.06 for CUDA 13.0")

    monkeypatch.setattr(pipeline, "load_backend", load)
    with pytest.raises(SelfTestFailed) as refusal:
        Pipeline.load(tensorrt_plans)
    for part in (
        "denoiser",
        "zeros",
        "probe 'smallest'",
        "fp32",
        "NVIDIA GeForce RTX 5090, driver 580.65.06",
        "tensorrt_rtx 1.7.1.116",
        "another driver",
        "--accumulate fp32, --bf16 or --fp32",
        "docs/troubleshooting.md",
    ):
        assert part in str(refusal.value)
    assert not cuda.leaks, "the device's memory is free again"
    Pipeline.load(tensorrt_plans, RuntimeOptions(self_test=False)).close()


def test_onnx_plans_are_not_tested_at_every_start(plan_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "require", lambda *_: pytest.fail("a start on a CPU takes longer"))
    Pipeline.load(plan_directory, RuntimeOptions(threads=1), verify=False).close()


def test_plans_without_probes_load_with_a_warning(nano: Nano, caplog: pytest.LogCaptureFixture) -> None:
    graphs = {name: replace(graph, probes=()) for name, graph in nano.manifest.graphs.items()}
    with closing(nano.on(FakeCuda())) as backend:
        self_test.require(nano.directory, replace(nano.manifest, graphs=graphs), backend)
    assert "the plans have no probes" in caplog.text


def test_missing_file_of_probes_is_refused(nano: Nano, tmp_path: Path) -> None:
    with closing(nano.on(FakeCuda())) as backend, pytest.raises(PlanCorrupt, match=f"{PROBES_FILE}.*build again"):
        self_test.require(tmp_path, nano.manifest, backend)
