"""Sums of FP16 products: what TensorRT makes of the graphs, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from fakes.study import BlockGraph, large_weights, write
from rich.console import Console

from engine.errors import BuildError
from engine.plan.manifest import Accumulation, Graph, Range
from export.build import BuildOptions, build_engines
from export.checkpoint.files import open_checkpoint
from export.checkpoint.weights import Fp16SumError
from export.compile.onnx_files import export_graphs
from export.compile.tensorrt_build import TensorRtBuilder
from export.graphs.checkpoint_graphs import make_graphs
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress

QUIET = BuildProgress(Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["fp32", "fp16"])
def test_tensorrt_fuses_attention_and_sums_as_the_graph_says(tmp_path: Path, accumulation: Accumulation) -> None:
    """TensorRT-RTX's plans hold the source of the attention kernel and the options of each product."""
    graph = BlockGraph(large_weights(1.0), "fp16", accumulation)
    write(graph, tmp_path / "block.onnx", graph.measure_at(torch.zeros(1, 256), keys=1024))
    entry = Graph("block.onnx", "fp16", graph.inputs, graph.outputs)
    shapes = {"batch": Range(1, 1, 1), "sequence": Range(64, 512, 1024)}
    TensorRtBuilder("rtx", ["8.9"], QUIET).build(tmp_path / "block.onnx", entry, [shapes], tmp_path / "block.plan")
    plan = (tmp_path / "block.plan").read_bytes()
    both_products = (
        rb"Kernel_traits_v2_flash_attention<\s*fmha::Ampere_hmma_(fp\d+)_traits,\s*fmha::Ampere_hmma_(fp\d+)"
    )
    assert re.findall(both_products, plan) == [(accumulation.encode(),) * 2]
    in_fp32 = plan.count(b"accumulation_type=2")  # 0 otherwise; the block has four products with weights of FP16
    assert in_fp32 == (4 if accumulation == "fp32" else 0)


def test_attention_over_more_keys_than_fp16_can_count_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    opened, precisions = open_checkpoint(str(checkpoint)), graph_precisions("fp16", "rtx")
    graphs = {"denoiser": make_graphs(opened, precisions, "fp16")["denoiser"]}
    with pytest.raises(
        Fp16SumError,
        match=r"the sum of the softmax over 30000 keys .* use --accumulate fp32, or a smaller --profile",
    ):
        export_graphs(graphs, opened, precisions, tmp_path, QUIET, keys=30_000)


def test_values_too_uneven_to_be_summed_in_fp16_are_refused() -> None:
    """Scaled so that the sum over the keys of one large row fits, the other rows would vanish."""
    weights = large_weights(1.0)
    weights["layers.0.attention.to_v.weight"][0] *= 2.0**12
    weights["layers.0.attention.to_out.0.weight"][:, 0] *= 2.0**-12
    condition = torch.zeros(1, 256)
    BlockGraph(weights, "fp16").measure_at(condition, keys=16_384)
    with pytest.raises(Fp16SumError, match=r"values, scaled by .* so uneven .* summed in FP16 over 16384 keys"):
        BlockGraph(weights, "fp16", "fp16").measure_at(condition, keys=16_384)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16", "flavor": "rtx"}, "--accumulate fp16 needs --fp16"),
        ({"precision": "fp16", "flavor": "onnx"}, "--accumulate fp16 needs --flavor tensorrt or rtx"),
    ],
)
def test_fp16_sums_are_refused_where_they_mean_nothing(
    checkpoint: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        build_engines(BuildOptions(str(checkpoint), tmp_path, accumulation="fp16", **options), QUIET)
