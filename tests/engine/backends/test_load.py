"""The choice of a backend, its refusals, options, and ONNX Runtime's bindings to the caller's arrays."""

import argparse
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from fakes.manifest import LARGE, MANIFEST, USUAL
from onnx import TensorProto, helper

from engine.array import Array
from engine.backends import load
from engine.backends.base import Backend, Bindings, Engine, check_bindings
from engine.backends.load import INSTALL, PACKAGES, kernel_cache_folder, load_backend
from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.backends.tensorrt import load as plans
from engine.errors import (
    BackendUnavailable,
    DeviceError,
    OutOfDeviceMemory,
    PlanCorrupt,
    PlanMismatch,
    ZImageError,
)
from engine.options import RuntimeOptions, add_pipeline_arguments
from engine.plan.manifest import Flavor, Graph, GraphName, Manifest, Target, TensorSpec
from engine.size import Size

GRAPH = Graph(
    "add.onnx",
    "fp32",
    (TensorSpec("latents", "float32", ("batch", 4)), TensorSpec("sigma", "float32", ("batch", 1))),
    (TensorSpec("latents_next", "float32", ("batch", 4)),),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """An ONNX file of latents_next = latents + sigma."""
    inputs, outputs = (
        [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape) for spec in specs]
        for specs in (GRAPH.inputs, GRAPH.outputs)
    )
    node = helper.make_node("Add", ["latents", "sigma"], ["latents_next"])
    graph = helper.make_graph([node], "add", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / GRAPH.file)
    return tmp_path / GRAPH.file


class CountingEngine(OnnxRuntimeEngine):
    """An engine that counts how often arrays are bound."""

    bound = 0

    def _bind(self, addresses: tuple[tuple[str, int, tuple[int, ...]], ...]) -> Any:
        self.bound += 1
        return super()._bind(addresses)


def arrays(batch: int, value: float = 0) -> dict[str, Array]:
    return {
        "latents": np.full((batch, 4), value, np.float32),
        "sigma": np.arange(batch, dtype=np.float32)[:, None],
        "latents_next": np.full((batch, 4), np.nan, np.float32),
    }


def manifest_of(flavor: Flavor, builder: str, capabilities: tuple[str, ...] = ()) -> Manifest:
    return replace(MANIFEST, target=Target(flavor, builder, capabilities))


@pytest.mark.parametrize(
    ("flavor", "install"),
    [
        ("rtx", "tensorrt-rtx"),
        ("tensorrt", "tensorrt, from NVIDIA's own package index"),
        ("onnx", "onnxruntime"),
    ],
)
def test_missing_package_names_what_to_install(
    flavor: Flavor, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, flavor, "not_here")
    with pytest.raises(BackendUnavailable) as refusal:
        load_backend(tmp_path, manifest_of(flavor, "not_here 1.0"), RuntimeOptions())
    assert f"{flavor} plans need the package not_here" in str(refusal.value)
    assert f"pip install {install}" in str(refusal.value)


def test_package_with_a_missing_library_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_tensorrt.py").write_text("import ctypes; ctypes.CDLL('libnvinfer_not_here.so')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "tensorrt", "broken_tensorrt")
    with pytest.raises(BackendUnavailable, match="cannot be imported: libnvinfer_not_here"):
        load_backend(tmp_path, manifest_of("tensorrt", "broken_tensorrt 11.1"), RuntimeOptions())


@pytest.mark.parametrize("flavor", ["rtx", "tensorrt"])
def test_plans_of_another_builder_version_are_refused(
    flavor: Flavor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, flavor, "numpy")  # an installed package
    with pytest.raises(PlanMismatch) as refusal:
        load_backend(tmp_path, manifest_of(flavor, "numpy 0.9"), RuntimeOptions())
    assert f"built by numpy 0.9, but numpy {np.__version__} is installed" in str(refusal.value)
    assert "run build-engines again" in str(refusal.value)


def test_old_rtx_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill the host's memory."""
    monkeypatch.setitem(PACKAGES, "rtx", "numpy")
    monkeypatch.setattr(np, "__version__", "1.6.1.27")
    with pytest.raises(
        BackendUnavailable, match=r"numpy 1\.6\.1\.27 is installed; before 1\.7 .*pip install --upgrade"
    ):
        load_backend(tmp_path, manifest_of("rtx", "numpy 1.6.1.27"), RuntimeOptions())


class Gpu:
    """The part of a GPU that is queried before anything is loaded."""

    def __init__(self, name: str = "NVIDIA H100", driver: str = "13.0") -> None:
        self._name, self._driver = name, driver

    def compute_capability(self) -> str:
        return "9.0"

    def name(self) -> str:
        return self._name

    def driver(self) -> str:
        return self._driver


def test_kernels_of_each_gpu_driver_and_version_have_their_own_folder(tmp_path: Path) -> None:
    manifest = manifest_of("rtx", "tensorrt_rtx 1.7.1.116")
    folders = {
        kernel_cache_folder(tmp_path, each, gpu)
        for each, gpu in (
            (manifest, Gpu("NVIDIA GeForce RTX 4090/x")),
            (manifest, Gpu("NVIDIA GeForce RTX 4090 D")),
            (manifest, Gpu("NVIDIA GeForce RTX 4090/x", "13.1")),
            (manifest_of("rtx", "tensorrt_rtx 1.8.0"), Gpu("NVIDIA GeForce RTX 4090/x")),
            (replace(manifest, plan_id="other"), Gpu("NVIDIA GeForce RTX 4090/x")),
        )
    }
    assert len(folders) == 5
    usual = tmp_path / MANIFEST.plan_id / "NVIDIA-GeForce-RTX-4090-x-driver-13.0-tensorrt_rtx-1.7.1.116"
    assert usual in folders


def test_plans_for_another_gpu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "rtx", "numpy")
    monkeypatch.setattr("engine.backends.load.CudaRuntime", Gpu)
    message = (
        r"for compute capability 8\.9, 12\.0, this GPU \(NVIDIA H100\) has 9\.0; TensorRT-RTX .* --flavor tensorrt"
    )
    with pytest.raises(PlanMismatch, match=message):
        load_backend(tmp_path, manifest_of("rtx", f"numpy {np.__version__}", ("8.9", "12.0")), RuntimeOptions())
    monkeypatch.setattr(Gpu, "compute_capability", lambda _: "8.6")
    with pytest.raises(
        PlanMismatch, match=r"has 8\.6; run build-engines again, here or with --compute-capability 8\.6"
    ):
        load_backend(tmp_path, manifest_of("rtx", f"numpy {np.__version__}", ("8.9", "12.0")), RuntimeOptions())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_tensorrt_plans_without_a_gpu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "rtx", "numpy")
    with pytest.raises(BackendUnavailable, match=r"TensorRT plans need a CUDA device: .*build-engines --flavor onnx"):
        load_backend(tmp_path, manifest_of("rtx", f"numpy {np.__version__}", ("8.9",)), RuntimeOptions())


def test_every_flavor_has_a_package_and_install_hint() -> None:
    assert PACKAGES.keys() == INSTALL.keys() == set(get_args(Flavor))


def test_onnx_plans_run_on_onnx_runtime(plan: Path) -> None:
    manifest = replace(MANIFEST, graphs=dict.fromkeys(MANIFEST.graphs, GRAPH))
    loaded = load_backend(plan.parent, manifest, RuntimeOptions(threads=1))
    assert loaded.engines.keys() == set(get_args(GraphName))
    assert all(isinstance(engine, OnnxRuntimeEngine) for engine in loaded.engines.values())
    loaded.close()


def test_without_image_input_neither_its_graphs_nor_their_tensors_are_loaded(plan: Path) -> None:
    manifest = replace(MANIFEST, graphs={name: replace(g, file=GRAPH.file) for name, g in MANIFEST.graphs.items()})
    tensors = {"init_image", "posterior_noise", "image_latents.0", "noise.1", "mask.1", "latents_blended"}
    for image_input in (True, False):
        loaded = load_backend(plan.parent, manifest, RuntimeOptions(threads=1, image_input=image_input))
        assert loaded.engines.keys() == set(manifest.graphs if image_input else manifest.without_image_input().graphs)
        assert tensors <= loaded.memory._flat.keys() if image_input else not tensors & loaded.memory._flat.keys()
        loaded.close()


def test_profiles_are_chosen_by_name() -> None:
    assert MANIFEST.choose_profiles(()) == {0: USUAL, 1: LARGE}
    assert MANIFEST.choose_profiles(("large",)) == {1: LARGE}
    with pytest.raises(PlanMismatch, match="no profile huge; they have usual, large"):
        MANIFEST.choose_profiles(("usual", "huge"))


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_damaged_onnx_plan_is_refused(plan: Path, content: bytes | None) -> None:
    plan.write_bytes(plan.read_bytes()[:-20] if content is None else content)
    with pytest.raises(PlanCorrupt, match=r"ONNX Runtime cannot load .*add\.onnx: "):
        OnnxRuntimeEngine(plan, GRAPH)


def test_outputs_are_written_into_the_callers_arrays(plan: Path) -> None:
    engine, ours = OnnxRuntimeEngine(plan, GRAPH), arrays(3, value=5)
    before = dict(ours)
    engine.enqueue(0, ours)
    assert all(ours[name] is before[name] for name in ours)
    assert np.array_equal(ours["latents_next"], np.tile([[5], [6], [7]], 4))


FAILURES: dict[str, tuple[list[onnx.NodeProto], type[DeviceError], str]] = {
    "too large": (
        [
            helper.make_node("Expand", ["latents", "large"], ["expanded"]),
            helper.make_node("ReduceMax", ["expanded", "first"], ["latents_next"], keepdims=0),
        ],
        OutOfDeviceMemory,
        r"ONNX Runtime could not allocate 6,597,070 MB to run add\.onnx; free memory, or generate smaller images",
    ),
    "of another shape": (
        [
            helper.make_node("Cast", ["sigma"], ["indices"], to=TensorProto.INT64),
            helper.make_node("GatherElements", ["latents", "indices"], ["latents_next"], axis=1),
        ],
        DeviceError,
        r"ONNX Runtime cannot run add\.onnx: .*GatherElements",
    ),
}


@pytest.mark.parametrize(("nodes", "error", "message"), FAILURES.values(), ids=FAILURES)
def test_pass_that_fails_raises_a_device_error(
    plan: Path, nodes: list[onnx.NodeProto], error: type[DeviceError], message: str
) -> None:
    model = onnx.load(plan)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, values in (("large", [1 << 36, 1, 1]), ("first", [0])):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    onnx.save(model, plan)
    with pytest.raises(error, match=message) as failure:
        OnnxRuntimeEngine(plan, GRAPH).enqueue(0, arrays(6))
    assert failure.type is error


def test_same_arrays_are_bound_once_and_read_on_every_call(plan: Path) -> None:
    engine, ours = CountingEngine(plan, GRAPH), arrays(2)
    for value in range(5):
        ours["latents"][:] = value
        engine.enqueue(0, dict(ours))
        assert np.array_equal(ours["latents_next"], np.tile([[value], [value + 1]], 4))
    assert engine.bound == 1


def test_two_alternating_buffers_are_bound_twice(plan: Path) -> None:
    engine, ours = CountingEngine(plan, GRAPH), arrays(1)
    ours["sigma"][:] = 1
    swapped = ours | {"latents": ours["latents_next"], "latents_next": ours["latents"]}
    for step in range(8):
        engine.enqueue(0, swapped if step % 2 else ours)
    assert np.array_equal(ours["latents"], np.full((1, 4), 8))
    assert engine.bound == 2


def test_another_shape_at_the_same_address_is_bound_separately(plan: Path) -> None:
    engine, large = CountingEngine(plan, GRAPH), arrays(3, value=5)
    small = {name: array[:1] for name, array in large.items()}
    engine.enqueue(0, small)
    assert np.array_equal(small["latents_next"], np.full((1, 4), 5))
    assert np.isnan(large["latents_next"][1:]).all()
    engine.enqueue(0, large)
    assert np.isfinite(large["latents_next"]).all()
    assert engine.bound == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latents": np.zeros((2, 4), np.float64)}, "latents: float64, the graph has float32"),
        ({"latents_next": np.zeros((2, 4), np.float16)}, "latents_next: float16, the graph has float32"),
        ({"latents": np.zeros((2, 8), np.float32)[:, ::2]}, "latents is not contiguous"),
        ({"latents_next": np.zeros((4, 2), np.float32).T}, "latents_next is not contiguous"),
    ],
)
def test_wrong_bindings_fail_an_assertion(plan: Path, wrong: Mapping[str, Array], message: str) -> None:
    bindings = arrays(2) | wrong
    with pytest.raises(AssertionError, match=message):
        check_bindings(GRAPH, bindings)
    with pytest.raises(AssertionError, match=message):
        OnnxRuntimeEngine(plan, GRAPH).enqueue(0, bindings)


def test_stream_on_a_cpu_fails_an_assertion(plan: Path) -> None:
    with pytest.raises(AssertionError, match="no streams"):
        OnnxRuntimeEngine(plan, GRAPH).enqueue(1, arrays(1))


def test_backend_of_a_gpu_names_the_gpu_and_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = pytest.importorskip("tensorrt_rtx")
    gpu = SimpleNamespace(
        name=lambda: "NVIDIA GeForce RTX 5090",
        driver=lambda: "580.65.06 for CUDA 13.0",
        compute_capability=lambda: "12.0",
    )
    monkeypatch.setattr(load, "CudaRuntime", lambda: gpu)
    monkeypatch.setattr(plans, "load_plans", lambda *_: Backend(SimpleNamespace(), {}))
    manifest = replace(MANIFEST, target=Target("rtx", f"tensorrt_rtx {package.__version__}", ("12.0",)))
    loaded = load_backend(tmp_path, manifest, RuntimeOptions())
    assert loaded.device == "NVIDIA GeForce RTX 5090, driver 580.65.06 for CUDA 13.0"


def test_options_are_parsed_from_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    add_pipeline_arguments(parser)
    assert RuntimeOptions.of(parser.parse_args(["--engines", "x"])) == RuntimeOptions()
    words = "--engines x --threads 2 --profile a,b --profile c --warm-up 64x96,128 --cuda-graphs off --runtime-cache y"
    words += " --no-self-test"
    assert RuntimeOptions.of(parser.parse_args(words.split())) == RuntimeOptions(
        2, ("a,b", "c"), (Size(64, 96), Size(128, 128)), "off", False, False, Path("y")
    )


@pytest.mark.parametrize(
    ("flavor", "ignored"),
    [
        ("onnx", ["--cuda-graphs", "--offload", "--no-self-test", "--runtime-cache"]),
        ("tensorrt", ["--threads", "--runtime-cache"]),
        ("rtx", ["--threads"]),
    ],
)
def test_options_without_effect_on_a_flavor_are_named(flavor: Flavor, ignored: list[str]) -> None:
    given = RuntimeOptions(2, ("a",), (), "on", True, False, Path("x"))
    assert given.without_effect(flavor) == ignored
    assert RuntimeOptions().without_effect(flavor) == []


def test_loading_warns_of_options_without_effect(plan: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = replace(MANIFEST, graphs=dict.fromkeys(MANIFEST.graphs, GRAPH))
    load_backend(plan.parent, manifest, RuntimeOptions(offload=True, threads=1)).close()
    assert [record.getMessage() for record in caplog.records] == ["--offload has no effect on onnx plans"]


@pytest.mark.parametrize("words", ["--warm-up 64y96", "--threads -1", "--threads two", "--cuda-graphs maybe"])
def test_invalid_option_values_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_pipeline_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--engines", "x", *words.split()])
    assert words.split()[0] in capsys.readouterr().err


def test_offload_with_warm_up_is_refused() -> None:
    with pytest.raises(ZImageError, match="--offload unloads what --warm-up prepares"):
        RuntimeOptions(offload=True, warm_up=(Size(64, 64),))


@dataclass
class Changing(Engine):
    """An engine that records the LoRAs applied to it, and refuses some."""

    refuses: tuple[Any, ...] = ()
    applied: list[Any] = field(default_factory=list)

    def enqueue(self, stream: int, bindings: Bindings) -> None: ...

    def refit(self, lora: Any) -> Iterator[None]:
        if lora in self.refuses:
            raise PlanCorrupt(f"cannot apply {lora}")
        self.applied.append(lora)
        yield


def test_failed_change_of_loras_restores_every_engine_that_it_can() -> None:
    encoder, denoiser, decoder = Changing(), Changing(refuses=("lora", None)), Changing()
    engines = {"prompt_encoder": encoder, "denoiser": denoiser, "vae_decoder": decoder}
    with pytest.raises(PlanCorrupt, match="cannot apply lora"):
        deque(Backend(None, engines).refit("lora"), maxlen=0)
    assert (encoder.applied, decoder.applied) == (["lora", None], [None])
