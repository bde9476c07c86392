"""Plan directories for `zimage-bench gpu-check`, including plans for GPUs that TensorRT does not list as supported.

Plans for an unlisted GPU are converted from an ONNX plan directory, with a manifest that names this GPU. The check then
finds out whether they run. No other code writes such manifests.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.backends.cuda import CudaRuntime
from engine.plan.directory import MANIFEST_FILE, encode, read
from engine.plan.manifest import Flavor, Graph, GraphName, Precision, Target
from engine.plan.shapes import dimensions
from export import plan_directory
from export.build import BuildOptions, build_engines
from export.compile.tensorrt_build import RTX_COMPUTE_CAPABILITIES, TensorRtBuilder
from export.progress import BuildProgress
from nano.layout import Z_IMAGE_NANO, Z_IMAGE_TURBO
from nano.miniature import write_miniature

Args = argparse.Namespace


def checkpoint_folder(args: Args) -> Path:
    """Return z-image-nano's folder, or a folder with random weights in the real size, written on the first call."""
    if args.size == "nano":
        return Z_IMAGE_NANO
    folder: Path = args.folder / f"random-{args.layers}-layers"
    if not folder.exists():
        text_layers = min(args.layers + 1, Z_IMAGE_TURBO.text_layers)
        write_miniature(folder, replace(Z_IMAGE_TURBO, n_layers=args.layers, text_layers=text_layers, shards=1))
    return folder


def build_variant(checkpoint: Path, args: Args, variant: str, *, refittable: bool = False) -> Path:
    """Build the plans of one variant.

    Args:
        variant: "onnx", "tensorrt", "rtx", "rtx-sm80" or "rtx-ampere-plus".

    Returns:
        A directory written by `build_engines` where that supports this GPU. Otherwise a directory converted from ONNX
        plans, whose VAE is in FP32.
    """
    if variant == "onnx":
        return build(checkpoint, args, "onnx", refittable=refittable)
    if variant == "tensorrt":
        return build(checkpoint, args, "tensorrt", refittable=refittable)
    capability = CudaRuntime().compute_capability()
    if variant == "rtx" and capability in RTX_COMPUTE_CAPABILITIES:
        return build(checkpoint, args, "rtx", (capability,), refittable=refittable)
    onnx = build(checkpoint, args, "onnx", refittable=refittable)
    return convert(onnx, args.folder / f"{onnx.name}-{variant}", builder_for(variant), capability)


def build(
    checkpoint: Path, args: Args, flavor: Flavor, capabilities: tuple[str, ...] = (), *, refittable: bool = False
) -> Path:
    """Build a plan directory with `build_engines`: FP32 for the CPU, FP16 for a GPU."""
    precision: Precision = "fp32" if args.device == "cpu" else "fp16"
    options = BuildOptions(
        str(checkpoint),
        args.folder / "engines",
        precision,
        flavor,
        compute_capabilities=capabilities,
        refittable=refittable,
        verify=False,  # the part "parity" compares on the device
    )
    return build_engines(options, BuildProgress(Console(stderr=True)))


def convert(onnx: Path, directory: Path, builder: TensorRtBuilder, capability: str) -> Path:
    """Build TensorRT plans from an ONNX plan directory.

    Args:
        capability: compute capability for the manifest, also where TensorRT does not list it.
    """
    manifest = read(onnx, verify=False)
    directory.mkdir(parents=True)
    shutil.copytree(onnx / "tokenizer", directory / "tokenizer")
    graphs: dict[GraphName, Graph] = {}
    for name, graph in manifest.graphs.items():
        plan = directory / f"{name}.plan"
        shapes = [dimensions(name, profile, manifest.model) for profile in manifest.profiles]
        activation_bytes = builder.build(onnx / graph.file, graph, shapes, plan)
        if graph.weights_file is not None:
            shutil.copyfile(onnx / graph.weights_file, directory / graph.weights_file)
        graphs[name] = replace(graph, file=plan.name, activation_bytes=activation_bytes)
    flavor: Flavor = "tensorrt" if builder.name.startswith("tensorrt ") else "rtx"
    target = Target(flavor, builder.name, (capability,))
    files = plan_directory.list_files(directory)
    plans = replace(manifest, graphs=graphs, target=target, files=files, plan_id=f"{manifest.plan_id}-{directory.name}")
    (directory / MANIFEST_FILE).write_bytes(encode(plans))
    return directory


def builder_for(variant: str) -> TensorRtBuilder:
    """Return the builder of a TensorRT variant."""
    flavor: Flavor = "tensorrt" if variant == "tensorrt" else "rtx"
    capabilities = ("8.0",) if variant == "rtx-sm80" else ()
    kind = _AmperePlusBuilder if variant == "rtx-ampere-plus" else TensorRtBuilder
    return kind(flavor, capabilities, BuildProgress(Console(stderr=True)))


class _AmperePlusBuilder(TensorRtBuilder):
    """Builds plans for Ampere and all later GPUs."""

    def _config(self, *args: Any) -> Any:
        config = super()._config(*args)
        config.hardware_compatibility_level = self._trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return config
