"""The parts of `zimage-bench gpu-check`, one function each. Parts share plans through the command's folder."""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.graph_errors import graph_errors
from benchmarks.gpu.plans import build, build_variant, builder_for, checkpoint_folder, convert
from benchmarks.harness import roofline
from benchmarks.harness.device import Device
from benchmarks.harness.report import Stopwatch
from engine.backends.cuda import CudaRuntime
from engine.backends.vram import VramPlan
from engine.errors import PlanNotFound
from engine.options import CudaGraphs, RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import read
from engine.plan.manifest import Manifest
from engine.request import ImageRequest
from export.checkpoint.files import open_checkpoint
from export.checkpoint.lora import Lora
from export.prepared_lora import prepare
from nano.layout import Z_IMAGE_NANO

Figures = dict[str, Any]
Args = argparse.Namespace

WRONG = 0.1  # relative L2 above which a graph computes another function; FP16 stays under 1e-2, silent zeros give 1
VARIANTS = ("tensorrt", "rtx", "rtx-sm80", "rtx-ampere-plus")  # parts that try a TensorRT variant, best first
PLANS_FILE = "plans.txt"  # in the folder: path of the model's plans


def has_gpu() -> bool:
    """Return True if PyTorch finds a CUDA device."""
    return torch.cuda.is_available()


def machine(args: Args) -> Figures:
    """Measure the matrix rate and the bandwidth, and read the free GPU memory."""
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    rates = roofline.measure(Device(args.device), dtype)
    found: Figures = {"dtype": str(dtype), "tflops": rates.flops / 1e12, "copies_gb_per_s": rates.bandwidth / 1e9}
    if args.device == "cuda":
        cuda = CudaRuntime()
        found |= {"gpu": cuda.name(), "compute_capability": cuda.compute_capability()}
        found["free_gb"] = cuda.memory_info()[0] / 1e9
    return found


def run_onnx(args: Args) -> Figures:
    """Build z-image-nano as ONNX and run it on the CPU. The TensorRT parts build from these files."""
    directory = build(Z_IMAGE_NANO, args, "onnx")
    return {"directory": directory.name} | graph_errors(directory, Z_IMAGE_NANO, "cpu")


def run_variant(args: Args, variant: str) -> Figures:
    """Build z-image-nano as one TensorRT variant, load it on this GPU and compare it with PyTorch."""
    onnx = build(Z_IMAGE_NANO, args, "onnx")
    directory = args.folder / "runs" / variant
    shutil.rmtree(directory, ignore_errors=True)
    builder = builder_for(variant)
    convert(onnx, directory, builder, CudaRuntime().compute_capability())
    return {"builder": builder.name} | graph_errors(directory, Z_IMAGE_NANO, "cuda")


def build_plans(args: Args) -> Figures:
    """Build plans of the requested model in the first variant that runs here."""
    watch, variant = Stopwatch(), working_variant(args)
    checkpoint = checkpoint_folder(args)
    written = watch.seconds
    directory = build_variant(checkpoint, args, variant)
    manifest = read(directory, verify=False)
    (args.folder / PLANS_FILE).write_text(str(directory.resolve()))
    return {
        "variant": variant,
        "precisions": {name: graph.precision for name, graph in manifest.graphs.items()},
        "checkpoint_s": written,
        "build_s": watch.seconds - written,
        "gb": sum(file.size for file in manifest.files) / 1e9,
    }


def parity(args: Args) -> Figures:
    """Compare each graph of the model's plans with PyTorch in FP32 on the device."""
    return graph_errors(plans(args), checkpoint_folder(args), args.device)


def memory(args: Args) -> Figures:
    """Measure GPU memory after loading and after the largest images, next to the planned amount."""
    directory = plans(args)
    manifest, cuda = read(directory, verify=False), CudaRuntime()
    before = cuda.memory_info()[0]
    with Pipeline.load(directory, verify=False) as pipeline:
        loaded = cuda.memory_info()[0]
        largest = max(manifest.profiles, key=lambda profile: profile.area)
        for _ in range(3):
            pipeline.generate(ImageRequest("a red circle", largest.width.max, largest.height.max))
        generated = cuda.memory_info()[0]
    planned = VramPlan.of(directory, manifest, range(len(manifest.profiles)), offload=False)
    figures = {"planned": planned.needed, "loaded": before - loaded, "after_images": before - generated}
    return {f"{name}_gb": size / 1e9 for name, size in figures.items()} | {
        "left_after_closing_gb": (before - cuda.memory_info()[0]) / 1e9
    }


def cuda_graphs(args: Args) -> Figures:
    """Measure milliseconds of a step without and with CUDA graphs."""
    found: Figures = {}
    modes: tuple[CudaGraphs, ...] = ("off", "on")
    for mode in modes:
        with Pipeline.load(plans(args), RuntimeOptions(cuda_graphs=mode), verify=False) as pipeline:
            for side in _square_sizes(args, pipeline.manifest):
                found.setdefault(f"{side}x{side}", {})[f"{mode}_ms"] = 1e3 * _step_seconds(pipeline, side)
    for row in found.values():
        row["gain"] = row["off_ms"] / row["on_ms"]
    return found


def refit(args: Args) -> Figures:
    """Swap z-image-nano's LoRA in and out of refittable plans, and check that the image comes back unchanged."""
    directory = build_variant(Z_IMAGE_NANO, args, working_variant(args), refittable=True)
    file = Z_IMAGE_NANO.with_name("z-image-nano-lora") / "outlines.safetensors"
    lora = prepare(open_checkpoint(str(Z_IMAGE_NANO)), [Lora(file)], read(directory, verify=False))
    request = ImageRequest("a red circle on a blue background", 128, 128, seed=7)
    with Pipeline.load(directory, verify=False) as pipeline:
        plain = pipeline.generate(request).pixels
        seconds: dict[str, list[float]] = {"in": [], "out": []}
        for _ in range(2 if args.quick else 5):
            seconds["in"].append(pipeline.refit(lora))
            with_lora = pipeline.generate(request).pixels
            seconds["out"].append(pipeline.refit(None))
        restored = pipeline.generate(request).pixels
    return {
        "in_ms": 1e3 * statistics.median(seconds["in"]),
        "out_ms": 1e3 * statistics.median(seconds["out"]),
        "pixels_changed": float(np.mean(np.any(with_lora != plain, axis=-1))),
        "restored_bit_for_bit": bool(np.array_equal(restored, plain)),
    }


def working_variant(args: Args) -> str:
    """Return the first TensorRT variant whose part ran and matched PyTorch, else "onnx"."""
    report = args.folder / "report.json"
    figures = json.loads(report.read_text())["figures"] if report.is_file() else {}
    for name in VARIANTS if args.device == "cuda" else ():
        if figures.get(name, {}).get("worst", np.inf) < WRONG:
            return name
    return "onnx"


def plans(args: Args) -> Path:
    """Return the plan directory that the part "plans" built.

    Raises:
        PlanNotFound: the part has not run, or has failed.
    """
    file: Path = args.folder / PLANS_FILE
    if not file.is_file():
        raise PlanNotFound(f"there is no {file}: the part plans has not built any")
    return Path(file.read_text())


def _step_seconds(pipeline: Pipeline, side: int) -> float:
    """Median seconds of a step by the device's clock, after two images that capture CUDA graphs."""
    request = ImageRequest("a red circle", side, side)
    images = [pipeline.generate(request) for _ in range(7)][2:]
    return statistics.median(image.seconds.denoiser / image.num_inference_steps for image in images)


def _square_sizes(args: Args, manifest: Manifest) -> list[int]:
    largest = max(min(profile.height.max, profile.width.max) for profile in manifest.profiles)
    return [side for side in ((64,) if args.quick else (256, 512, 1024, 2048)) if side <= largest]
