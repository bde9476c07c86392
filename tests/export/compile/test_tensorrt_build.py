"""The builder on the real TensorRT-RTX, which needs no GPU: flags, refusals, and how often it stores a weight."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper

from benchmarks import full_size
from engine.errors import BackendUnavailable, BuildError
from engine.plan.manifest import Graph, Range, TensorSpec
from engine.plan.shapes import dimensions
from export.compile import onnx_export, tensorrt_build
from export.compile.profiles import parse_profile
from export.compile.tensorrt_build import STATED, TensorRtBuilder
from export.progress import BuildProgress
from nano.layout import MINIATURE

SMALL, LARGE = {"batch": Range(1, 1, 1)}, {"batch": Range(1, 2, 4)}


class ConfigKeeper(TensorRtBuilder):
    """A builder whose last configuration can be asked."""

    config: Any = None

    def _config(self, *args: Any) -> Any:
        self.config = super()._config(*args)
        return self.config


class FirstOnly:
    """A pattern that finds the first message about activations only."""

    found = False

    def match(self, message: str) -> re.Match[str] | None:
        match = STATED.match(message)
        if match is None or match[1] != "Activation":
            return match
        self.found, before = True, self.found
        return None if before else match


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """An ONNX file of y = x @ W in FP32."""
    values = helper.make_tensor("W", TensorProto.FLOAT, (8, 16), [0.5] * 128)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", d)) for n, d in (("x", 8), ("y", 16))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["y"])], "product", ends[:1], ends[1:], [values])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    return tmp_path / "product.onnx"


def graph_of(path: Path) -> Graph:
    tensors = (TensorSpec("x", "float32", ("batch", 8)),), (TensorSpec("y", "float32", ("batch", 16)),)
    return Graph(path.name, "fp32", *tensors)


def builder(*capabilities: str) -> ConfigKeeper:
    return ConfigKeeper("rtx", capabilities or ("8.9",), BuildProgress())


def test_products_in_fp32_never_use_tf32(product: Path) -> None:
    ours = builder()
    ours.build(product, graph_of(product), [SMALL], product.with_suffix(".plan"))
    assert not ours.config.get_flag(tensorrt_rtx.BuilderFlag.TF32)


def test_activations_are_given_for_each_profile_and_weights_once(product: Path) -> None:
    ours = builder("8.0", "8.9", "12.0")
    assert len(ours.build(product, graph_of(product), [SMALL, LARGE], product.with_suffix(".plan"))) == 2
    assert ours.stored_bytes is not None and ours.stored_bytes >= 4 * 8 * 16


def test_activations_are_unknown_unless_the_log_has_one_figure_for_each_profile(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another version of TensorRT stated the memory of a plan once, and not of each profile."""
    monkeypatch.setattr(tensorrt_build, "STATED", FirstOnly())
    assert builder().build(product, graph_of(product), [SMALL, LARGE], product.with_suffix(".plan")) == ()


@pytest.mark.parametrize("bounds", [Range(4, 2, 1), Range(-1, 1, 1)])
def test_impossible_profile_is_refused(product: Path, bounds: Range) -> None:
    with pytest.raises(BuildError, match=r"TensorRT refuses the profile .*batch"):
        builder().build(product, graph_of(product), [{"batch": bounds}], product.with_suffix(".plan"))


def test_refused_compute_capability_is_an_error(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = builder()
    monkeypatch.setattr(ours, "_capabilities", [tensorrt_rtx.ComputeCapability.NONE])
    with pytest.raises(BuildError, match=r"TensorRT refuses to build for ComputeCapability\.NONE"):
        ours.build(product, graph_of(product), [SMALL], product.with_suffix(".plan"))


@pytest.mark.parametrize("capability", ["9.0", "10.0"])
def test_data_centre_gpus_are_told_to_use_tensorrt(capability: str) -> None:
    with pytest.raises(BuildError, match=rf"no compute capability '{re.escape(capability)}'\. .*H100 .* need tensorrt"):
        builder(capability)


def test_tensorrt_builds_for_the_gpu_at_hand_which_it_has_no_name_for(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tensorrt` has neither ComputeCapability nor a place for it in its configuration; the manifest names the GPU."""
    names = {name: getattr(tensorrt_rtx, name) for name in dir(tensorrt_rtx) if name != "ComputeCapability"}
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(**names))
    ours = ConfigKeeper("tensorrt", ("9.0",), BuildProgress())
    assert ours.build(product, graph_of(product), [SMALL], product.with_suffix(".plan")) != ()
    assert ours.config.num_compute_capabilities == 0


def test_tensorrt_that_does_not_start_is_named(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def null(_logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt_rtx, "Builder", null)
    with pytest.raises(
        BackendUnavailable, match="tensorrt_rtx does not start: it gives no reason; it may need a newer driver"
    ):
        builder().build(product, graph_of(product), [SMALL], product.with_suffix(".plan"))


@pytest.mark.slow
def test_profiles_of_different_batches_share_every_weight(tmp_path: Path) -> None:
    """TensorRT keeps a weight twice if a product of one profile has one axis or one row less than that of another."""
    sizes = replace(MINIATURE, n_layers=2, n_refiner_layers=0)
    module = full_size.graph_of(sizes, "denoiser", "bf16")
    path = tmp_path / "denoiser.onnx"
    traced = onnx_export.trace(module)
    onnx_export.attach_weights(traced, module.weights)
    weight_bytes = onnx_export.weight_bytes(traced)
    onnx_export.write(traced, path)
    graph = Graph(path.name, "bf16", module.inputs, module.outputs)
    profiles = [parse_profile(text, full_size.MODEL) for text in ("256,64:4", "384,64,512")]
    ours = builder()
    ours.build(path, graph, [dimensions("denoiser", p, full_size.MODEL) for p in profiles], path.with_suffix(".plan"))
    assert ours.stored_bytes is not None
    assert weight_bytes <= ours.stored_bytes < 1.01 * weight_bytes
