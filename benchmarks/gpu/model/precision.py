"""The parts `reference` and `precision`: the denoiser in PyTorch, in FP32 and in the plans' precisions."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import numpy as np
import torch

from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings
from benchmarks.gpu.model.accumulation import fp16_accumulation, fp16_reduction, without_tf32
from benchmarks.gpu.model.comparison_cases import Case, load, save
from benchmarks.gpu.model.denoiser_inputs import cases, inputs
from benchmarks.gpu.model.fused_attention import fused_attention
from benchmarks.gpu.model.weights import checkpoint
from engine.array import Array
from engine.plan.manifest import Precision
from export.checkpoint import models
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import load_as
from export.compile.parity import Reference
from export.graphs.denoiser import Denoiser
from export.graphs.layers import transformer_block

SAME_FUNCTION = 1e-3  # relative L2 in FP32 of a velocity, a small difference of latents; another function has 1e-1


def reference(settings: Settings, found: Findings) -> None:
    """Run DiffSynth's modules and our graph in FP32; keep DiffSynth's outputs for other parts."""
    without_tf32()
    source = checkpoint(settings)
    ours = denoiser(source, "fp32", settings.device)
    diffsynth = Reference(source, settings.device)
    done: dict[str, Case] = {}
    errors: dict[str, float] = {}
    for name, arguments in cases(settings).items():
        given = inputs(source, *arguments)
        case = done[name] = Case(given, diffsynth.denoiser(given))
        errors[name] = case.velocity_error(step(ours, given, settings.device))
        found.add(relative_l2=errors, output_rms={n: float(np.sqrt(np.mean(c.output**2))) for n, c in done.items()})
    save(settings, done)
    worst = max(errors.values())
    if not worst < SAME_FUNCTION:
        raise CheckFailed(
            f"our graph in FP32 differs from DiffSynth by {worst:.1e}, below {SAME_FUNCTION:.0e} expected"
        )
    found.answer(f"yes, relative L2 of the velocity at most {worst:.1e}")


def precision(settings: Settings, found: Findings) -> None:
    """Run our graph in PyTorch in each precision and way of accumulating, against FP32."""
    source, expected = checkpoint(settings), load(settings)
    keys = max(case.inputs["rope_cos"].shape[0] for case in expected.values())
    fp16 = cache(lambda: denoiser(source, "fp16", settings.device))  # bounding its products takes most of the time
    kinds: dict[str, tuple[Callable[[], Denoiser], Callable[[], AbstractContextManager[object]]]] = {
        "fp16": (fp16, lambda: fp16_reduction(False)),
        "fp16, reductions in fp16 allowed": (fp16, lambda: fp16_reduction(True)),
        "fp16, products in fp32": (
            lambda: denoiser(source, "fp16", settings.device, upcast=True, like=fp16()),
            nullcontext,
        ),
        "bf16": (lambda: denoiser(source, "bf16", settings.device), nullcontext),
    }
    if settings.device == "cuda":
        kinds["fp16, accumulates in fp16"] = (
            lambda: denoiser(source, "fp16", settings.device, fp16_keys=keys),
            fp16_accumulation,
        )

    def measure(make: Callable[[], Denoiser], context: Callable[[], AbstractContextManager[object]]) -> Figures:
        module = make()
        with context():
            return {n: case.velocity_error(step(module, case.inputs, settings.device)) for n, case in expected.items()}

    found.add_cases({name: partial(measure, *kind) for name, kind in kinds.items()})
    worst = {name: max(found.figures[name].values()) for name in kinds}
    found.answer("relative L2 of the velocity, worst: " + ", ".join(f"{n} {e:.1e}" for n, e in worst.items()))


def denoiser(
    source: Checkpoint,
    kind: Precision,
    device: str,
    *,
    block: Callable[..., torch.Tensor] = transformer_block,
    upcast: bool = False,
    fp16_keys: int | None = None,
    like: Denoiser | None = None,
) -> Denoiser:
    """Return the denoiser's graph as a module with its weights, scaled as for a plan.

    Args:
        upcast: compute FP16 products in FP32, as the graph asks TensorRT to sum them; else as torch does.
        fp16_keys: largest number of keys of the attention, to scale weights for sums in FP16; None for sums in FP32.
        like: module of the same precision whose weights it shares.
    """
    model = models.transformer(source.transformer)
    module = Denoiser(model, kind, block, "fp32" if fp16_keys is None else "fp16")
    if like is None:
        weights = module.measure(fp16_keys).weights
        state = {name: load_as(weights[name], own.dtype).to(device) for name, own in module.named_parameters()}
    else:
        state = dict(like.named_parameters())
    module.load_state_dict(state, strict=True, assign=True)
    for layer in module.modules() if not upcast else ():
        if hasattr(layer, "sums"):
            layer.sums = layer.weight.dtype  # type: ignore[assignment]  # torch types it as a parameter
    return module.eval().requires_grad_(False)


@torch.no_grad()
def step(module: Denoiser, given: Mapping[str, Array], device: str) -> Array:
    """Return the latents after a step."""
    with fused_attention():
        result: Array = module(**tensors(given, device)).cpu().numpy()
    return result


def tensors(given: Mapping[str, Array], device: str) -> dict[str, torch.Tensor]:
    """Return inputs on the device."""
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in given.items()}
