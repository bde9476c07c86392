"""Full-size graphs on a small machine: trace whole models from configs alone, build some of their layers into plans.

Tracing touches no weights. Layers that are built get seeded random weights, made as they are written.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.arguments import count
from benchmarks.harness.report import Stopwatch, finish, peak_rss
from benchmarks.harness.source import random_components
from engine.errors import BuildError
from engine.plan.manifest import (
    SCHEMA_VERSION,
    Accumulation,
    Graph,
    GraphName,
    Manifest,
    Model,
    Precision,
    Profile,
    PromptFormat,
    Rope,
    Target,
)
from engine.plan.shapes import dimensions, longest_sequence
from export.checkpoint import models
from export.compile import onnx_export, plan_size
from export.compile.profiles import default_profiles, parse_profile
from export.compile.target import compute_capabilities
from export.compile.tensorrt_build import TensorRtBuilder
from export.graphs.denoiser import Denoiser
from export.graphs.graph_module import GraphModule
from export.graphs.prompt_encoder import PromptEncoder
from export.graphs.vae_decoder import VaeDecoder
from export.graphs.vae_encoder import VaeEncoder
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress
from nano.layout import Z_IMAGE_TURBO, CheckpointSizes

GRAPHS: tuple[GraphName, ...] = ("prompt_encoder", "denoiser", "vae_decoder", "vae_encoder")  # those with weights
DEFAULTS: dict[str, Any] = {"layers": 4, "profile": [], "compute_capability": "8.9", "accumulate": "fp32"}  # of --build
GRAPHS_WITH = {"layers": ("prompt_encoder", "denoiser"), "accumulate": ("denoiser",)}
# The facts that profiles need; there is no checkpoint.
MODEL = Model(
    name="full-size",
    weights_sha256="",
    latent_channels=16,
    vae_scale=8,
    patch_size=2,
    prompt_embeds_dim=Z_IMAGE_TURBO.dim,
    rope=Rope(256.0, Z_IMAGE_TURBO.axes_dims, Z_IMAGE_TURBO.axes_lens),
    prompt=PromptFormat("", "", max_tokens=512, pad_token_id=0),
    schedule_shift=3.0,
    default_steps=8,
    default_guidance=0.0,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", choices=GRAPHS, help="Graph to trace or build")
    parser.add_argument("--build", action="store_true", help="Build an RTX plan of some layers instead of tracing all")
    parser.add_argument(
        "--layers",
        type=count,
        default=DEFAULTS["layers"],
        help="Transformer layers of the plan (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        action="append",
        default=DEFAULTS["profile"],
        help="As in build-engines; repeatable (default: its default profiles)",
    )
    parser.add_argument(
        "--compute-capability", default=DEFAULTS["compute_capability"], help="GPU to build for (default: %(default)s)"
    )
    parser.add_argument(
        "--accumulate", choices=("fp32", "fp16"), default=DEFAULTS["accumulate"], help="As in build-engines"
    )


def run(args: argparse.Namespace) -> None:
    _require_effect(args)
    if not args.build:
        finish("full-size", trace(args.graph))
        return
    profiles, builder = profiles_of(args.profile), builder_for(args.compute_capability)
    with exported(args.graph, args.layers, profiles, args.accumulate) as (path, graph):
        figures = build(args.graph, path, graph, profiles, builder)
    finish("full-size", {"graph": args.graph, "layers": args.layers, "accumulation": args.accumulate, **figures})


def _require_effect(args: argparse.Namespace) -> None:
    """Raise BuildError if an option has no effect."""
    for name in (name for name, default in DEFAULTS.items() if getattr(args, name) != default):
        option, graphs = f"--{name.replace('_', '-')}", GRAPHS_WITH.get(name, GRAPHS)
        if not args.build:
            raise BuildError(f"{option} needs --build; a whole graph is traced without it")
        if args.graph not in graphs:
            raise BuildError(f"{option} has no effect on the {args.graph}, only on {' and '.join(graphs)}")


def trace(graph: GraphName) -> dict[str, Any]:
    """Trace one complete graph of Z-Image-Turbo.

    Returns:
        Parameters, bytes of weights, nodes, seconds, and the peak resident set of this process in bytes.
    """
    watch = Stopwatch()
    module = graph_of(Z_IMAGE_TURBO, graph, graph_precisions("fp16", "rtx")[graph])
    model = onnx_export.trace(module)
    used = [module.weights[name] for name in model.graph.initializers if name in module.weights]
    stored = [value for value in model.graph.initializers.values() if value.const_value is None]
    return {
        "graph": graph,
        "parameters": sum(math.prod(weight.shape) for weight in used),
        "weight_bytes": int(sum(math.prod(value.shape) * value.dtype.itemsize for value in stored)),
        "nodes": len(list(model.graph)),
        "seconds": round(watch.seconds, 1),
        "peak_rss_bytes": peak_rss(),
    }


@contextmanager
def exported(
    graph: GraphName, layers: int, profiles: Sequence[Profile], accumulation: Accumulation = "fp32"
) -> Iterator[tuple[Path, Graph]]:
    """Export a full-size graph with fewer layers and no refiner to an ONNX file, which is removed at the end."""
    sizes = replace(Z_IMAGE_TURBO, n_layers=layers, n_refiner_layers=0, text_layers=layers + 1)
    module = graph_of(sizes, graph, graph_precisions("fp16", "rtx")[graph], accumulation)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{graph}.onnx"
        onnx = onnx_export.trace(module)
        onnx_export.attach_weights(onnx, module.measure(longest_sequence(profiles, MODEL)).weights)
        weight_bytes = onnx_export.weight_bytes(onnx)
        onnx_export.write(onnx, path)
        yield path, Graph(path.name, module.precision, module.inputs, module.outputs, weight_bytes=weight_bytes)


def builder_for(compute_capability: str) -> TensorRtBuilder:
    """Return a builder of RTX plans for one kind of GPU.

    Raises:
        BuildError: TensorRT-RTX does not support it.
    """
    return TensorRtBuilder("rtx", compute_capabilities("rtx", (compute_capability,)), BuildProgress())


def build(
    name: GraphName, path: Path, graph: Graph, profiles: Sequence[Profile], builder: TensorRtBuilder
) -> dict[str, Any]:
    """Build an RTX plan of an exported graph.

    Returns:
        Seconds, bytes of weights, of the plan and of the weights in it with the ratio of the plan's, bytes of
        activations by profile as TensorRT states them, and the peak resident set in bytes.
    """
    plan = path.with_suffix(".plan")
    watch = Stopwatch()
    shapes = [dimensions(name, profile, MODEL) for profile in profiles]
    activation_bytes = builder.build(path, graph, shapes, plan)
    for line in plan_size.describe(name, replace(graph, activation_bytes=activation_bytes), plan.stat().st_size):
        print(line)
    return {
        "builder": builder.name,
        "seconds": round(watch.seconds, 1),
        "weight_bytes": graph.weight_bytes,
        "plan_bytes": plan.stat().st_size,
        "stored_bytes": builder.stored_bytes,
        "ratio": round(plan.stat().st_size / graph.weight_bytes, 3),
        "activation_bytes": dict(zip([profile.name for profile in profiles], activation_bytes, strict=False)),
        "peak_rss_bytes": peak_rss(),
    }


def profiles_of(texts: Sequence[str]) -> tuple[Profile, ...]:
    """Return the profiles of the command line, or build-engines' own for Z-Image-Turbo."""
    return tuple(parse_profile(text, MODEL) for text in texts) or default_profiles(Z_IMAGE_TURBO.sample_size, MODEL)


def manifest(
    model: Model, precision: Precision, profiles: Sequence[Profile], graphs: Mapping[GraphName, Graph]
) -> Manifest:
    """Return the manifest of RTX plans that no directory holds."""
    return Manifest(SCHEMA_VERSION, "", "", precision, model, Target("rtx", ""), tuple(profiles), dict(graphs), ())


def graph_of(
    sizes: CheckpointSizes, graph: GraphName, precision: Precision, accumulation: Accumulation = "fp32"
) -> GraphModule:
    """Make a graph of any size from configs alone."""
    parts = random_components(sizes)
    if graph == "vae_decoder":
        return VaeDecoder(models.vae_decoder(parts["vae"]), precision)
    if graph == "vae_encoder":
        encoder = models.vae_encoder(parts["vae"])
        assert encoder is not None
        return VaeEncoder(encoder, precision)
    transformer = models.transformer(parts["transformer"])
    if graph == "denoiser":
        return Denoiser(transformer, precision, accumulation=accumulation)
    return PromptEncoder(models.text_encoder(parts["text_encoder"]), transformer, precision)
