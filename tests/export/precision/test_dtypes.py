"""The precision of each graph, and weights that FP16 does not hold."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import BuildError, CheckpointError
from export.checkpoint.files import open_checkpoint
from export.checkpoint.weights import Fp16RangeError
from export.cli import main
from export.compile.onnx_files import export_graphs
from export.graphs.checkpoint_graphs import make_graphs
from export.precision.bounds import LIMIT
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress

Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("fp16", "rtx", ("8.9", "12.0")), ("fp16", "fp16", "bf16", "bf16")),
        (("fp16", "tensorrt", ("7.5",)), ("fp16", "fp16", "fp32", "fp32")),  # Turing has no BF16
        (("fp16", "onnx"), ("fp16", "fp16", "fp32", "fp32")),
        (("bf16", "rtx", ("8.9",)), ("bf16", "bf16", "bf16", "bf16")),
        (("fp32", "onnx"), ("fp32", "fp32", "fp32", "fp32")),
    ],
)
def test_each_graph_gets_a_precision_that_its_target_supports(
    arguments: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert tuple(graph_precisions(*arguments).values()) == expected


@pytest.mark.parametrize(
    ("target", "lacking"), [(("onnx",), "ONNX Runtime on a CPU"), (("tensorrt", ("7.5",)), "compute capability 7.5")]
)
def test_bf16_is_refused_where_there_is_none(target: tuple[Any, ...], lacking: str) -> None:
    with pytest.raises(BuildError, match=f"{lacking} has no BF16; use --fp16 or --fp32"):
        graph_precisions("bf16", *target)


def one_row(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0] *= 1e12
    return tensor


def one_infinity(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = torch.inf
    return tensor


def changed(checkpoint: Path, folder: Path, component: str, tensor: str, change: Change) -> Path:
    """A copy of the checkpoint with one tensor changed."""
    copy = shutil.copytree(checkpoint, folder / "model")
    [file] = (copy / component).glob("*.safetensors")
    weights = load_file(file)
    weights[tensor] = change(weights[tensor].float())
    save_file(weights, file)
    return copy


def test_weights_beyond_fp16_end_the_build_with_a_precision_that_holds_them(checkpoint: Path, tmp_path: Path) -> None:
    model = changed(checkpoint, tmp_path, "transformer", "layers.2.attention.to_v.weight", one_row)
    options = ("--output", str(tmp_path / "out"), "--flavor", "onnx", "--no-verify")
    message = r"model: transformer\.layers\.2: FP16 cannot hold the attention at any scale.*; use --fp32$"
    with pytest.raises(SystemExit, match=message):
        main(["--model", str(model), *options])
    assert not list((tmp_path / "out").glob("*/manifest.json"))


@pytest.mark.slow
@pytest.mark.usefixtures("build_plans")
def test_prompt_encoder_beyond_fp16_is_exported_in_fp32(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outlier = changed(checkpoint, tmp_path, "text_encoder", "model.layers.0.mlp.up_proj.weight", one_row)
    opened, precisions = open_checkpoint(str(outlier)), graph_precisions("fp16", "onnx")
    graphs = {"prompt_encoder": make_graphs(opened, precisions)["prompt_encoder"]}
    exported = export_graphs(graphs, opened, precisions, tmp_path, BuildProgress())["prompt_encoder"]
    assert (exported.precision, exported.products) == ("fp32", ())
    said = " ".join(capsys.readouterr().err.split())
    assert "prompt_encoder: using fp32, since FP16 cannot hold it: text_encoder.layers.0: FP16 cannot hold" in said


def tiny(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2.0**-20


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        (
            "noise_refiner.1.feed_forward.w3.weight",
            one_row,
            r"noise_refiner\.1: FP16 cannot hold the feed-forward part",
        ),
        (
            "layers.0.attention.norm_q.weight",
            lambda t: t * 1e5,
            r"layers\.0: queries, keys or attention scores can reach",
        ),
        (
            "layers.1.feed_forward.w2.weight",
            one_infinity,
            r"layers\.1\.feed_forward\.w2\.weight in .* holds NaN or Inf",
        ),
        ("layers.0.attention.to_v.weight", lambda t: t * 1e25, "FP16 cannot hold the attention at any scale"),
        ("t_embedder.mlp.0.bias", one_infinity, r"t_embedder.* holds NaN or Inf"),
        ("layers.1.feed_forward.w2.weight", tiny, r"w2\.weight in .* is too small for FP16, which loses 6.9%"),
    ],
)
def test_weights_that_fp16_does_not_hold_are_refused_by_name(
    checkpoint: Path, tmp_path: Path, tensor: str, change: Change, message: str
) -> None:
    opened = open_checkpoint(str(changed(checkpoint, tmp_path, "transformer", tensor, change)))
    graph = make_graphs(opened, graph_precisions("fp16", "onnx"))["denoiser"]
    with pytest.raises(CheckpointError, match=message):
        graph.measure()


@pytest.mark.parametrize(
    ("tensor", "factor", "message"),
    [
        ("model.embed_tokens.weight", 2.0**-20, r"embed_tokens.* is too small for FP16, which loses .*%"),
        ("model.layers.0.self_attn.o_proj.weight", 2.0**-20, r"o_proj.* is too small for FP16"),
        ("model.layers.0.mlp.up_proj.weight", 1e6, r"up_proj.* has values that float16 cannot hold"),
    ],
)
def test_prompt_encoder_weights_beyond_fp16_raise_a_range_error(
    checkpoint: Path, tmp_path: Path, tensor: str, factor: float, message: str
) -> None:
    opened = open_checkpoint(str(changed(checkpoint, tmp_path, "text_encoder", tensor, lambda t: t * factor)))
    graph = make_graphs(opened, graph_precisions("fp16", "onnx"))["prompt_encoder"]
    with pytest.raises(Fp16RangeError, match=message):
        graph.measure()


def outlier(channel: int) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[channel] = 100.0
        return tensor

    return change


def test_outliers_in_different_channels_of_queries_and_keys_fit_fp16(checkpoint: Path, tmp_path: Path) -> None:
    """The product of their largest elements is beyond FP16, the largest product is not."""
    first = changed(checkpoint, tmp_path / "a", "transformer", "layers.0.attention.norm_q.weight", outlier(3))
    both = changed(first, tmp_path / "b", "transformer", "layers.0.attention.norm_k.weight", outlier(9))
    graph = make_graphs(open_checkpoint(str(both)), graph_precisions("fp16", "onnx"))["denoiser"]
    [scores] = [product for product in graph.measure().products if product.name == "transformer.layers.0.attention"]
    assert 100 < scores.output_bound < LIMIT
