"""Plan directories for `zimage-bench gpu-check`, also for GPUs that TensorRT does not list as its own.

Such plans are built from an ONNX plan directory and say of themselves that they are for this GPU. Whether they are is
what the check finds out; nothing else writes such manifests.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.backends.cuda import CudaRuntime
from engine.plan.manifest import MANIFEST_FILE, Flavor, Graph, GraphName, Precision, Target, encode, read
from engine.plan.shapes import dimensions
from export import plan_directory
from export.build import BuildOptions, build_engines
from export.compile.tensorrt_build import RTX_COMPUTE_CAPABILITIES, TensorRtBuilder
from export.progress import BuildProgress

Args = argparse.Namespace


def plans_of(checkpoint: Path, args: Args, way: str, *, refittable: bool = False) -> Path:
    """By `build_engines`, if that builds for this GPU; else from its ONNX files, whose VAE is then in FP32."""
    if way == "onnx":
        return build(checkpoint, args, "onnx", refittable=refittable)
    if way == "tensorrt":
        return build(checkpoint, args, "tensorrt", refittable=refittable)
    capability = CudaRuntime().compute_capability()
    if way == "rtx" and capability in RTX_COMPUTE_CAPABILITIES:
        return build(checkpoint, args, "rtx", (capability,), refittable=refittable)
    onnx = build(checkpoint, args, "onnx", refittable=refittable)
    return convert(onnx, args.folder / f"{onnx.name}-{way}", builder_for(way), capability)


def build(
    checkpoint: Path, args: Args, flavor: Flavor, capabilities: tuple[str, ...] = (), *, refittable: bool = False
) -> Path:
    precision: Precision = "fp32" if args.device == "cpu" else "fp16"
    options = BuildOptions(
        str(checkpoint),
        args.folder / "engines",
        precision,
        flavor,
        compute_capabilities=capabilities,
        refittable=refittable,
        verify="never",  # the part "parity" does it, on the device
    )
    return build_engines(options, BuildProgress(Console(stderr=True)))


def convert(onnx: Path, directory: Path, builder: TensorRtBuilder, capability: str) -> Path:
    """TensorRT plans of ONNX ones, with a manifest that says they are for this GPU, whatever TensorRT thinks of it."""
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


def builder_for(way: str) -> TensorRtBuilder:
    flavor: Flavor = "tensorrt" if way == "tensorrt" else "rtx"
    capabilities = ("8.0",) if way == "rtx-sm80" else ()
    kind = _AmperePlus if way == "rtx-ampere-plus" else TensorRtBuilder
    return kind(flavor, capabilities, BuildProgress(Console(stderr=True)))


class _AmperePlus(TensorRtBuilder):
    """Builds for Ampere and whatever came after it."""

    def _config(self, *args: Any) -> Any:
        config = super()._config(*args)
        config.hardware_compatibility_level = self._trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return config
