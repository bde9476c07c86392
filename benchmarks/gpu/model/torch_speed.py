"""The part `torch-speed`: a step of DiffSynth and of our graph in PyTorch, eager and compiled, beside the roofline."""

import statistics
import time
import warnings
from collections.abc import Callable
from functools import cache, partial

import torch

from benchmarks.gpu.findings import Figures, Findings, Settings
from benchmarks.gpu.model.checked_model import LAYERS, PROMPT_TOKENS, roofline
from benchmarks.gpu.model.denoiser_inputs import inputs
from benchmarks.gpu.model.fused_attention import fused_attention
from benchmarks.gpu.model.precision import denoiser, tensors
from benchmarks.gpu.model.weights import checkpoint
from benchmarks.harness.device import Device
from engine.plan.manifest import Precision
from export.checkpoint import models
from export.checkpoint.files import Checkpoint
from export.compile.parity import velocity
from export.graphs.denoiser import Denoiser
from export.graphs.layers import transformer_block

Step = Callable[[], object]


def speed(settings: Settings, found: Findings) -> None:
    """Time each runner at each size; compiled ones last, since compiling may fail or take long."""
    source = checkpoint(settings)
    sides = (128,) if settings.quick else (1024, 512)  # the more important one first
    found.add(roofline_ms={str(side): roofline(settings).get(str(side), {}) for side in sides})
    ours = cache(lambda kind: denoiser(source, kind, settings.device))  # bounding products takes longer than steps
    runners: dict[str, Callable[[int], Step]] = {
        "DiffSynth bf16, eager": _diffsynth(source, settings, compiled=False),
        "our graph fp16, eager": _ours(source, settings, ours, "fp16", compiled=False),
        "our graph bf16, eager": _ours(source, settings, ours, "bf16", compiled=False),
        "DiffSynth bf16, compiled": _diffsynth(source, settings, compiled=True),
        "our graph fp16, compiled": _ours(source, settings, ours, "fp16", compiled=True),
    }
    if settings.device == "cpu":  # fp16 is slow there, and compiling takes longer than a test may
        slow = [name for name in runners if "fp16" in name or (settings.quick and "compiled" in name)]
        runners = {name: make for name, make in runners.items() if name not in slow}
        found.add(left_out_on_a_cpu=slow)
    cases = {
        f"{name}, {side}": partial(measure, make, side, settings) for side in sides for name, make in runners.items()
    }
    found.add_cases(cases)
    found.answer(", ".join(f"{n} {found.figures[n]['ms']:.3g} ms" for n in cases if n.endswith(str(sides[0]))))


def measure(make: Callable[[int], Step], side: int, settings: Settings) -> Figures:
    """Return first and median milliseconds of a step, and the median of the whole model by the number of layers."""
    device, run = Device(settings.device), make(side)
    first, *rest = [_milliseconds(run, device) for _ in range(3 if settings.quick else 12)]
    median = statistics.median(rest[1:])
    return {"first_ms": first, "ms": median, f"ms_{LAYERS}_layers": median * LAYERS / settings.layers}


def _milliseconds(run: Step, device: Device) -> float:
    device.synchronize()
    started = time.perf_counter()
    run()
    device.synchronize()
    return 1e3 * (time.perf_counter() - started)


def _ours(
    source: Checkpoint, settings: Settings, made: Callable[[Precision], Denoiser], kind: Precision, *, compiled: bool
) -> Callable[[int], Step]:
    def make(side: int) -> Step:
        block = torch.compile(transformer_block, dynamic=False) if compiled else transformer_block
        module = denoiser(source, kind, settings.device, block=block, like=made(kind))
        given = tensors(inputs(source, side, PROMPT_TOKENS, False), settings.device)

        @torch.no_grad()
        def run() -> object:
            with fused_attention():
                return module(**given)

        return run

    return make


def _diffsynth(source: Checkpoint, settings: Settings, *, compiled: bool) -> Callable[[int], Step]:
    dtype = torch.bfloat16

    def make(side: int) -> Step:
        model = models.transformer(source.transformer)
        state = {name: weight.load().to(settings.device, dtype) for name, weight in model.weights.items()}
        model.module.load_state_dict(state, strict=True, assign=True)
        dit = model.module.eval().requires_grad_(False)
        if compiled:
            warnings.filterwarnings("ignore", ".*complex operators", UserWarning)  # its rotary embedding stays eager
            dit.layers = torch.nn.ModuleList(torch.compile(layer, dynamic=False) for layer in dit.layers)  # type: ignore[misc]
        given = tensors(inputs(source, side, PROMPT_TOKENS, False), settings.device)
        latents, prompt = given["latents"].to(dtype), given["prompt_embeds"][0].to(dtype)

        @torch.no_grad()
        def run() -> torch.Tensor:
            return velocity(dit, latents, given["sigma"].to(dtype), prompt)

        return run

    return make
