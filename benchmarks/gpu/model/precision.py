"""The parts `reference` and `precision`: the denoiser in PyTorch, in FP32 and in the plans' precisions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings
from benchmarks.gpu.model.accumulation import fp16_accumulation, without_tf32
from benchmarks.gpu.model.comparison_cases import Case, load, save
from benchmarks.gpu.model.denoiser_inputs import cases, inputs
from benchmarks.gpu.model.weights import checkpoint
from engine.array import Array
from engine.plan.manifest import Precision
from export.checkpoint import models
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import load_as
from export.compile.parity import Reference
from export.graphs.denoiser import Denoiser
from export.graphs.layers import transformer_block

MOST_TOKENS = 16_896  # of 2048 x 2048 pixels and a prompt of 512
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
    kinds: dict[str, tuple[Precision, Callable[[], AbstractContextManager[object]]]] = {
        "fp16": ("fp16", lambda: _reduced_reduction(False)),
        "fp16, reductions in fp16 allowed": ("fp16", lambda: _reduced_reduction(True)),
        "bf16": ("bf16", nullcontext),
    }
    if settings.device == "cuda":
        kinds["fp16, accumulates in fp16"] = ("fp16", fp16_accumulation)

    def measure(kind: Precision, context: Callable[[], AbstractContextManager[object]]) -> Figures:
        module = denoiser(source, kind, settings.device)
        with context():
            return {n: case.velocity_error(step(module, case.inputs, settings.device)) for n, case in expected.items()}

    found.add_cases({name: lambda kind=kind: measure(*kind) for name, kind in kinds.items()})  # type: ignore[misc]
    worst = {name: max(found.figures[name].values()) for name in kinds}
    found.answer("relative L2 of the velocity, worst: " + ", ".join(f"{n} {e:.1e}" for n, e in worst.items()))


def denoiser(source: Checkpoint, kind: Precision, device: str, block: object = None) -> Denoiser:
    """Return the denoiser's graph as a module with its weights, scaled as for a plan that sums in FP16.

    PyTorch would run the casts of the other kind of plan as products of FP32.
    """
    model = models.transformer(source.transformer)
    chosen = transformer_block if block is None else block
    module = Denoiser(model, kind, chosen, "fp16")  # type: ignore[arg-type]
    weights = module.measure(MOST_TOKENS).weights
    state = {name: load_as(weights[name], own.dtype).to(device) for name, own in module.named_parameters()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def step(module: Denoiser, given: Mapping[str, Array], device: str) -> Array:
    """Return the latents after a step."""
    result: Array = module(**tensors(given, device)).cpu().numpy()
    return result


def tensors(given: Mapping[str, Array], device: str) -> dict[str, torch.Tensor]:
    """Return inputs on the device."""
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in given.items()}


@contextmanager
def _reduced_reduction(allowed: bool) -> Iterator[None]:
    """Let FP16 matrix products add partial results up in FP16, or not. PyTorch does by default."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = allowed
    try:
        yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction = before
