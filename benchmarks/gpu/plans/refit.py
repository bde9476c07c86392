"""The part `refit`: a LoRA over all products of the checked layers goes in and out of refittable plans."""

import numpy as np
import torch
from safetensors.torch import save

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.findings import Findings, Settings
from benchmarks.gpu.model.checked_model import LAYERS, main_side
from benchmarks.gpu.model.weights import checkpoint
from benchmarks.gpu.plans.build import build_variant
from benchmarks.harness.report import Stopwatch
from engine.pipeline import Pipeline
from engine.plan.directory import read
from engine.request import ImageRequest
from export.checkpoint.lora import Lora
from export.prepared_lora import prepare

RANK = 16
TARGETS = (
    *(f"attention.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"feed_forward.{layer}" for layer in ("w1", "w2", "w3")),
)


def refit(settings: Settings, found: Findings) -> None:
    """Swap a random LoRA in and out, and compare images."""
    directory = build_variant(settings, refittable=True)
    manifest, source, file = read(directory, verify=False), checkpoint(settings), settings.folder / "random.safetensors"
    weights = source.transformer.weights
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(tuple(f"{t}.weight" for t in TARGETS))]
    file.write_bytes(save(random_lora({layer: weights[f"{layer}.weight"].shape for layer in layers})))
    watch = Stopwatch()
    lora = prepare(source, [Lora(file)], manifest)
    found.add(layers=len(layers), prepare_s=watch.seconds)
    side = main_side(settings)
    request = ImageRequest("a red circle on a blue background", side, side, seed=7, num_inference_steps=4)
    with Pipeline.load(directory, verify=False) as pipeline:
        plain = pipeline.generate(request).pixels
        seconds: dict[str, list[float]] = {"in": [], "out": []}
        for _ in range(2):
            seconds["in"].append(pipeline.refit(lora))
            changed = pipeline.generate(request).pixels
            seconds["out"].append(pipeline.refit(None))
            restored = pipeline.generate(request).pixels
            found.add(seconds=seconds, pixels_changed=float(np.mean(np.any(changed != plain, axis=-1))))
            found.add(restored_bit_for_bit=bool(np.array_equal(restored, plain)))
    scale = LAYERS / settings.layers
    found.answer(
        f"in {seconds['in'][-1]:.2f} s, out {seconds['out'][-1]:.2f} s ({scale * seconds['in'][-1]:.1f} and "
        f"{scale * seconds['out'][-1]:.1f} for {LAYERS} layers); restored bit for bit"
    )
    require(found.figures["pixels_changed"] > 0, "the LoRA changed no pixel")
    require(found.figures["restored_bit_for_bit"], "the image did not come back bit for bit")


def random_lora(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return random pairs of matrices under DiffSynth's keys."""
    generator, tensors = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for layer, (outputs, inputs) in shapes.items():
        down, up = (torch.randn(shape, generator=generator) for shape in ((RANK, inputs), (outputs, RANK)))
        tensors[f"{layer}.lora_A.default.weight"] = (down / inputs**0.5).bfloat16()
        tensors[f"{layer}.lora_B.default.weight"] = (0.1 * up).bfloat16()
    return tensors
