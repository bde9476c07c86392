"""The questions of `zimage-bench gpu-check`, one function each. They know the device, and the folder between them."""

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.plans import build, builder_for, convert, plans_of
from benchmarks.harness.report import Stopwatch
from engine.backends import load as backend
from engine.backends.base import Backend
from engine.backends.cuda import CudaRuntime
from engine.backends.memory import Array
from engine.backends.vram import VramPlan
from engine.errors import PlanNotFound
from engine.options import CudaGraphs, RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.manifest import Graph, GraphName, Manifest, Model, read
from engine.request import ImageRequest
from export.checkpoint.files import open_checkpoint
from export.checkpoint.lora import Lora
from export.checkpoint.refit import prepare
from export.compile.parity import Reference, relative_l2, sample_inputs
from nano.layout import Z_IMAGE_NANO, Z_IMAGE_TURBO
from nano.miniature import write_miniature

Figures = dict[str, Any]
Args = argparse.Namespace

WRONG = 0.1  # relative L2 above which it is not the same function; FP16 stays under 1e-2, silent zeros give 1
SHAPES = ((16, 16, 20, 1), (18, 22, 40, 2))  # latents, prompt tokens and batch of the comparisons
RUNS = ("tensorrt", "rtx", "rtx-sm80", "rtx-ampere-plus")  # parts that find out whether a flavor runs, best first
PLANS = "plans.txt"  # in the folder: where the plans of the model are


def has_gpu() -> bool:
    """Whether PyTorch sees one."""
    return torch.cuda.is_available()


def machine(args: Args) -> Figures:
    """The rates that a roofline is computed from, and what memory is free."""
    from benchmarks.harness import roofline
    from benchmarks.harness.device import Device

    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    rates = roofline.measure(Device(args.device), dtype)
    found: Figures = {"dtype": str(dtype), "tflops": rates.flops / 1e12, "copies_gb_per_s": rates.bandwidth / 1e9}
    if args.device == "cuda":
        cuda = CudaRuntime()
        found |= {"gpu": cuda.name(), "compute_capability": cuda.compute_capability()}
        found["free_gb"] = cuda.memory_info()[0] / 1e9
    return found


def runs_onnx(args: Args) -> Figures:
    """Builds z-image-nano as ONNX, from which the TensorRT flavors' plans are built, and runs it on the CPU."""
    directory = build(Z_IMAGE_NANO, args, "onnx")
    return {"directory": directory.name} | _compare(directory, Z_IMAGE_NANO, "cpu")


def runs(args: Args, way: str) -> Figures:
    """Whether plans of z-image-nano that are built this way load here and compute what PyTorch computes."""
    onnx = build(Z_IMAGE_NANO, args, "onnx")
    directory = args.folder / "runs" / way
    shutil.rmtree(directory, ignore_errors=True)
    builder = builder_for(way)
    convert(onnx, directory, builder, CudaRuntime().compute_capability())
    return {"builder": builder.name} | _compare(directory, Z_IMAGE_NANO, "cuda")


def plans(args: Args) -> Figures:
    """Plans of the model that is asked for, by the way that was found to run."""
    watch, way = Stopwatch(), _way(args)
    checkpoint = _checkpoint(args)
    written = watch.seconds
    directory = plans_of(checkpoint, args, way)
    manifest = read(directory, verify=False)
    (args.folder / PLANS).write_text(str(directory.resolve()))
    return {
        "way": way,
        "precisions": {name: graph.precision for name, graph in manifest.graphs.items()},
        "checkpoint_s": written,
        "build_s": watch.seconds - written,
        "gb": sum(file.size for file in manifest.files) / 1e9,
    }


def parity(args: Args) -> Figures:
    return _compare(_plans(args), _checkpoint(args), args.device)


def memory(args: Args) -> Figures:
    """Bytes free before, after loading and after an image of the largest size, against what was planned."""
    directory = _plans(args)
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
    """Milliseconds of a step without and with CUDA graphs, and the gain."""
    found: Figures = {}
    modes: tuple[CudaGraphs, ...] = ("off", "on")
    for mode in modes:
        with Pipeline.load(_plans(args), RuntimeOptions(cuda_graphs=mode), verify=False) as pipeline:
            for side in _sides(args, pipeline.manifest):
                found.setdefault(f"{side}x{side}", {})[f"{mode}_ms"] = 1e3 * _step_seconds(pipeline, side)
    for row in found.values():
        row["gain"] = row["off_ms"] / row["on_ms"]
    return found


def refit(args: Args) -> Figures:
    """z-image-nano's LoRA in and out of refittable plans."""
    directory = plans_of(Z_IMAGE_NANO, args, _way(args), refittable=True)
    file = Z_IMAGE_NANO.with_name("z-image-nano-lora") / "outlines.safetensors"
    lora = prepare(open_checkpoint(str(Z_IMAGE_NANO)), [Lora(file)], read(directory, verify=False))
    request = ImageRequest("a red circle on a blue background", 128, 128, seed=7)
    with Pipeline.load(directory, verify=False) as pipeline:
        plain = pipeline.generate(request).pixels
        seconds: dict[str, list[float]] = {"in": [], "out": []}
        for _ in range(2 if args.quick else 5):
            for way_in, wanted in (("in", lora), ("out", None)):
                seconds[way_in].append(pipeline.refit(wanted))
                if wanted is not None:
                    with_lora = pipeline.generate(request).pixels
        restored = pipeline.generate(request).pixels
    return {
        "in_ms": 1e3 * statistics.median(seconds["in"]),
        "out_ms": 1e3 * statistics.median(seconds["out"]),
        "pixels_changed": float(np.mean(np.any(with_lora != plain, axis=-1))),
        "restored_bit_for_bit": bool(np.array_equal(restored, plain)),
    }


def latency(args: Args) -> Figures:
    """`zimage-bench latency` over the plans and the peers; over the peers alone if no flavor runs on the GPU."""
    from benchmarks import cli

    file = args.folder / "latency.json"
    command = ["latency", "--device", args.device, "--json", str(file)]
    if args.device == "cuda" and _way(args) == "onnx":  # no plans run on it
        command += ["--random-weights", args.size]
    else:
        command += ["--model", str(_checkpoint(args)), "--engines", str(_plans(args))]
    command += ["--sizes", "64", "--batches", "1", "--seconds", "1"] if args.quick else ["--seconds", "4"]
    cli.main([*command, "--plot", str(args.folder / "latency.png")])
    found: Figures = json.loads(file.read_text())["figures"]
    return found


def _way(args: Args) -> str:
    """The first part that found its flavor to run here and to be right."""
    report = args.folder / "report.json"
    figures = json.loads(report.read_text())["figures"] if report.is_file() else {}
    for name in RUNS if args.device == "cuda" else ():
        if figures.get(name, {}).get("worst", np.inf) < WRONG:
            return name
    return "onnx"


def _compare(directory: Path, checkpoint: Path, device: str) -> Figures:
    """Relative L2 of each graph against DiffSynth's modules in FP32 on the device; the worst of a few shapes."""
    manifest = read(directory, verify=False)
    reference = Reference(open_checkpoint(str(checkpoint)), device)
    loaded = backend.load(directory, manifest, RuntimeOptions())
    try:
        errors: dict[str, float] = {}
        for name in manifest.graphs:
            forward = reference.forward(name)
            for height, width, tokens, batch in SHAPES:
                samples = 1 if name == "vae_decoder" else batch
                inputs = sample_inputs(name, reference.config, height=height, width=width, tokens=tokens, batch=samples)
                error = relative_l2(_run(loaded, manifest, name, inputs), forward(inputs))
                errors[name] = max(error, errors.get(name, 0.0)) if np.isfinite(error) else float("inf")
    finally:
        loaded.close()
    return {"relative_l2": errors, "worst": max(errors.values())}


def _run(loaded: Backend, manifest: Manifest, name: GraphName, inputs: Mapping[str, Array]) -> Array:
    """A graph's output, through the engine and the memory that serve images."""
    memory, graph = loaded.memory, manifest.graphs[name]
    bindings = {key: memory.write(key, array) for key, array in inputs.items()}
    [output] = graph.outputs
    bindings[output.name] = memory.view(output.name, _output_shape(graph, manifest.model, inputs))
    memory.claim(bindings[output.name])
    loaded.engines[name].enqueue(memory.stream, bindings)
    return memory.read(bindings[output.name]).wait().copy()


def _output_shape(graph: Graph, model: Model, inputs: Mapping[str, Array]) -> tuple[int, ...]:
    found = {d: size for spec in graph.inputs for d, size in zip(spec.shape, inputs[spec.name].shape, strict=True)}
    for side in ("height", "width"):
        if f"latent_{side}" in found:
            found[side] = found[f"latent_{side}"] * model.vae_scale
    return tuple(d if isinstance(d, int) else found[d] for d in graph.outputs[0].shape)


def _step_seconds(pipeline: Pipeline, side: int) -> float:
    """Median of a step on the device's own clock, after images that captured and decided."""
    request = ImageRequest("a red circle", side, side)
    images = [pipeline.generate(request) for _ in range(7)][2:]
    return statistics.median(image.seconds.denoiser / image.num_inference_steps for image in images)


def _sides(args: Args, manifest: Manifest) -> list[int]:
    largest = max(min(profile.height.max, profile.width.max) for profile in manifest.profiles)
    return [side for side in ((64,) if args.quick else (256, 512, 1024, 2048)) if side <= largest]


def _checkpoint(args: Args) -> Path:
    """z-image-nano, or random weights of the real size, written once."""
    if args.size == "nano":
        return Z_IMAGE_NANO
    folder: Path = args.folder / f"random-{args.layers}-layers"
    if not folder.exists():
        text_layers = min(args.layers + 1, Z_IMAGE_TURBO.text_layers)
        write_miniature(folder, replace(Z_IMAGE_TURBO, n_layers=args.layers, text_layers=text_layers, shards=1))
    return folder


def _plans(args: Args) -> Path:
    file: Path = args.folder / PLANS
    if not file.is_file():
        raise PlanNotFound(f"{file} is not there: the part plans has not built any")
    return Path(file.read_text())
