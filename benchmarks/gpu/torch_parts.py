"""The parts `reference` and `precision`: the denoiser in PyTorch at full width, in FP32 and in the plans' precisions."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.accumulation import fp16_accumulation
from benchmarks.gpu.denoiser_inputs import cases, inputs, velocity_error
from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings
from benchmarks.gpu.weights import checkpoint
from engine.plan.manifest import Precision
from export.checkpoint import models
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import load_as
from export.compile.parity import Arrays, Reference
from export.graphs.denoiser import Denoiser

SAME_FUNCTION = 1e-3  # relative L2 in FP32 of a velocity, a small difference of latents; another function has 1e-1


def reference(settings: Settings, found: Findings) -> None:
    """Run DiffSynth's modules and our graph in FP32; keep DiffSynth's outputs for other parts."""
    without_tf32()
    source = checkpoint(settings)
    ours = denoiser(source, "fp32", settings.device)
    diffsynth = Reference(source, settings.device)
    outputs: dict[str, np.ndarray] = {}
    errors: dict[str, float] = {}
    for name, case in cases(settings).items():
        given = inputs(source, *case)
        outputs[name] = diffsynth.denoiser(given)
        errors[name] = velocity_error(step(ours, given, settings.device), torch.from_numpy(outputs[name]), given)
        found.add(relative_l2=errors, output_rms={n: float(np.sqrt(np.mean(o**2))) for n, o in outputs.items()})
    np.savez(reference_file(settings), **outputs)  # type: ignore[arg-type]
    worst = max(errors.values())
    if not worst < SAME_FUNCTION:
        raise CheckFailed(f"our graph in FP32 differs from DiffSynth by {worst:.1e}, below {SAME_FUNCTION:.0e} expected")
    found.answer(f"yes, relative L2 of the velocity at most {worst:.1e}")


def precision(settings: Settings, found: Findings) -> None:
    """Run our graph in PyTorch in each precision and way of accumulating, against FP32."""
    source, expected = checkpoint(settings), expected_outputs(settings)
    kinds: dict[str, tuple[Precision, AbstractContextManager[object]]] = {
        "fp16": ("fp16", _reduced_reduction(False)),
        "fp16, reductions in fp16 allowed": ("fp16", _reduced_reduction(True)),
        "fp16, accumulates in fp16": ("fp16", fp16_accumulation() if settings.device == "cuda" else nullcontext()),
        "bf16": ("bf16", nullcontext()),
    }

    def measure(kind: Precision, context: AbstractContextManager[object]) -> Figures:
        module = denoiser(source, kind, settings.device)
        with context:
            return errors_of(lambda given: step(module, given, settings.device), source, expected, settings)

    found.add_cases({name: lambda kind=kind: measure(*kind) for name, kind in kinds.items()})
    worst = {name: max(found.figures[name].values()) for name in kinds}
    found.answer("relative L2 of the velocity, worst: " + ", ".join(f"{n} {e:.1e}" for n, e in worst.items()))


def errors_of(run, source: Checkpoint, expected: Mapping[str, torch.Tensor], settings: Settings) -> Figures:  # type: ignore[no-untyped-def]
    """Return the relative L2 of the velocity for each case.

    Args:
        run: function from the denoiser's inputs to its output.
    """
    found: Figures = {}
    for name, case in cases(settings).items():
        given = inputs(source, *case)
        found[name] = velocity_error(run(given), expected[name], given)
    return found


def denoiser(source: Checkpoint, kind: Precision, device: str, block: object = None) -> Denoiser:
    """Return the denoiser's graph as a module with its weights, scaled as for a plan."""
    model = models.transformer(source.transformer)
    module = Denoiser(model, kind) if block is None else Denoiser(model, kind, block)  # type: ignore[arg-type]
    weights = module.measure().weights
    state = {name: load_as(weights[name], own.dtype).to(device) for name, own in module.named_parameters()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def step(module: Denoiser, given: Arrays, device: str) -> torch.Tensor:
    """Return the latents after a step."""
    tensors = {name: torch.from_numpy(array).to(device) for name, array in given.items()}
    result: torch.Tensor = module(**tensors)
    return result


def reference_file(settings: Settings) -> Path:
    """Return the file with DiffSynth's outputs."""
    return settings.folder / "reference.npz"


def expected_outputs(settings: Settings) -> dict[str, torch.Tensor]:
    """Read DiffSynth's outputs, by case."""
    with np.load(reference_file(settings)) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def without_tf32() -> None:
    """Compute FP32 products and convolutions in FP32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


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
