"""Full-size graphs on a small machine: trace whole models from configs alone, build some of their layers into plans.

Tracing touches no weights. Layers that are built get seeded random weights, made as they are written.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Stopwatch, finish, peak_rss
from benchmarks.harness.source import random_components
from engine.plan.manifest import Accumulation, Graph, GraphName, Model, Precision, PromptFormat, Rope
from engine.plan.shapes import dimensions
from export.checkpoint import models
from export.compile import onnx_export
from export.compile.profiles import parse_profile
from export.compile.tensorrt_build import TensorRtBuilder
from export.graphs.denoiser import Denoiser
from export.graphs.graph_module import GraphModule
from export.graphs.prompt_encoder import PromptEncoder
from export.graphs.vae_decoder import VaeDecoder
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress
from nano.layout import Z_IMAGE_TURBO, CheckpointSizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", choices=("prompt_encoder", "denoiser", "vae_decoder"), help="Graph to trace or build")
    parser.add_argument("--build", action="store_true", help="Build an RTX plan of some layers instead of tracing all")
    parser.add_argument("--layers", type=int, default=4, help="Transformer layers of the plan (default: %(default)s)")
    parser.add_argument("--profile", default="1024,512,1536:4", help="As in build-engines (default: %(default)s)")
    parser.add_argument("--compute-capability", default="8.9", help="GPU to build for (default: %(default)s)")
    parser.add_argument("--accumulate", choices=("fp32", "fp16"), default="fp32", help="As in build-engines")


def run(args: argparse.Namespace) -> None:
    figures = (
        build(args.graph, args.layers, args.profile, args.compute_capability, args.accumulate)
        if args.build
        else trace(args.graph)
    )
    finish("full-size", figures)


def trace(graph: GraphName) -> dict[str, Any]:
    """Trace one complete graph of Z-Image-Turbo.

    Returns:
        Parameters, nodes, seconds, and the peak resident set of this process in bytes.
    """
    watch = Stopwatch()
    module = graph_of(Z_IMAGE_TURBO, graph, "fp16")
    model = onnx_export.trace(module)
    used = [module.weights[name] for name in model.graph.initializers if name in module.weights]
    return {
        "graph": graph,
        "parameters": sum(math.prod(weight.shape) for weight in used),
        "nodes": len(list(model.graph)),
        "seconds": round(watch.seconds, 1),
        "peak_rss_bytes": peak_rss(),
    }


def build(
    graph: GraphName, layers: int, profile: str, compute_capability: str, accumulation: Accumulation = "fp32"
) -> dict[str, Any]:
    """Build an RTX plan of a full-size graph with fewer layers and no refiner.

    Returns:
        Seconds, bytes of weights and plan, activation memory as TensorRT reports it, peak resident set in bytes.
    """
    sizes = replace(Z_IMAGE_TURBO, n_layers=layers, n_refiner_layers=0, text_layers=layers + 1)
    precision = graph_precisions("fp16", "rtx")[graph]
    module = graph_of(sizes, graph, precision, accumulation)
    builder = TensorRtBuilder("rtx", [compute_capability], BuildProgress())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{graph}.onnx"
        onnx = onnx_export.trace(module)
        model = model_facts(sizes)
        shapes = dimensions(graph, parse_profile(profile, model), model)
        measured = module.measure(shapes["sequence"].max)
        onnx_export.attach_weights(onnx, measured.weights)
        onnx_export.write(onnx, path)
        weights = path.with_name(f"{path.name}.data").stat().st_size
        plan = path.with_suffix(".plan")
        watch = Stopwatch()
        activation_bytes = builder.build(
            path, Graph(path.name, precision, module.inputs, module.outputs), [shapes], plan
        )
        return {
            "graph": graph,
            "layers": layers,
            "profile": profile,
            "accumulation": accumulation,
            "builder": builder.name,
            "nodes": len(list(onnx.graph)),
            "seconds": round(watch.seconds, 1),
            "weight_bytes": weights,
            "plan_bytes": plan.stat().st_size,
            "activation_bytes": max(activation_bytes),
            "peak_rss_bytes": peak_rss(),
        }


def graph_of(
    sizes: CheckpointSizes, graph: GraphName, precision: Precision, accumulation: Accumulation = "fp32"
) -> GraphModule:
    """Make a graph of any size from configs alone."""
    parts = random_components(sizes)
    if graph == "vae_decoder":
        return VaeDecoder(models.vae_decoder(parts["vae"]), precision)
    transformer = models.transformer(parts["transformer"])
    if graph == "denoiser":
        return Denoiser(transformer, precision, accumulation=accumulation)
    return PromptEncoder(models.text_encoder(parts["text_encoder"]), transformer, precision)


def model_facts(sizes: CheckpointSizes) -> Model:
    """Return the model entry of a manifest, with the facts that profiles need, for a model without files."""
    rope = Rope(256.0, sizes.axes_dims, sizes.axes_lens)
    return Model("full-size", "", 16, 8, 2, sizes.dim, rope, PromptFormat("", "", 512, 0), 3.0, 8)
