"""The guidance graph: diffusers' formula, on latents in place of velocities."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from fakes.manifest import MANIFEST

from export.checkpoint.files import open_checkpoint
from export.compile.probe_inputs import ProbeInputs
from export.graphs.guidance import Guidance

Latents = tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]


def step(seed: int, closeness: float = 1.0) -> Latents:
    """Return the velocities of the prompt and of the negative prompt, the latents before, and the step's length."""
    positive, negative, before = torch.randn(3, 16, 8, 12, generator=torch.Generator().manual_seed(seed))
    return positive, positive + closeness * negative, before, -0.02


def of_diffusers(positive: torch.Tensor, negative: torch.Tensor, scale: float, normalization: float) -> torch.Tensor:
    """Return the guided velocity as `ZImagePipeline.__call__` computes it."""
    guided = positive + scale * (positive - negative)
    most = torch.linalg.vector_norm(positive) * normalization
    if normalization > 0 and torch.linalg.vector_norm(guided) > most:
        guided = guided * (most / torch.linalg.vector_norm(guided))
    return guided


def run(steps: list[Latents], scales: list[float], normalizations: list[float]) -> torch.Tensor:
    positive = torch.stack([before + length * velocity for velocity, _, before, length in steps])
    negative = torch.stack([before + length * velocity for _, velocity, before, length in steps])
    before = torch.stack([before for _, _, before, _ in steps])
    found: torch.Tensor = Guidance(16)(positive, negative, before, torch.tensor(scales), torch.tensor(normalizations))
    return found


@pytest.mark.parametrize("normalization", [0.0, 0.5, 1.0, 1.5, 99.0])
@pytest.mark.parametrize("closeness", [1.0, 0.01])
def test_guided_latents_follow_diffusers_velocity(normalization: float, closeness: float) -> None:
    """The step is a fiftieth of the latents, so that their rounding is a fiftieth of the change: relative 2e-5."""
    positive, negative, before, length = step(1, closeness)
    (got,) = run([(positive, negative, before, length)], [4.0], [normalization])
    expected = of_diffusers(positive, negative, 4.0, normalization)
    assert torch.linalg.vector_norm((got - before) / length - expected) < 2e-5 * torch.linalg.vector_norm(expected)


def test_samples_of_a_batch_are_bounded_on_their_own() -> None:
    steps, scales, normalizations = [step(seed) for seed in range(4)], [1.0, 2.0, 3.0, 7.0], [0.0, 1.0, 0.25, 99.0]
    together = run(steps, scales, normalizations)
    for row, one in enumerate(steps):
        (alone,) = run([one], scales[row : row + 1], normalizations[row : row + 1])
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("normalization", [0.0, 99.0])
def test_without_a_bound_to_exceed_the_latents_are_those_of_plain_guidance_to_the_bit(normalization: float) -> None:
    positive, negative, before, length = step(2)
    (got,) = run([(positive, negative, before, length)], [4.0], [normalization])
    after, unwanted = before + length * positive, before + length * negative
    assert torch.equal(got, after + 4.0 * (after - unwanted))


def test_steps_that_change_nothing_stay_finite() -> None:
    _, _, before, _ = step(3)
    still = torch.zeros_like(before)
    assert torch.equal(run([(still, still, before, -0.02)], [4.0], [1.0])[0], before)


def test_onnx_graph_is_bounded_as_the_module_is(plan_directory: Path) -> None:
    session = ort.InferenceSession(plan_directory / "guidance.onnx", providers=["CPUExecutionProvider"])
    latents = torch.randn(3, 4, 16, 8, 12, generator=torch.Generator().manual_seed(4))
    names = ("latents_positive", "latents_negative", "latents_before", "guidance_scale", "cfg_normalization")
    numbers = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.5, 99.0]])
    inputs = dict(zip(names, (*latents, *numbers), strict=True))
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    np.testing.assert_allclose(got, Guidance(16)(**inputs), rtol=0, atol=1e-5)


def test_probes_show_guidance_with_and_without_a_bound(checkpoint: Path) -> None:
    found = ProbeInputs(open_checkpoint(str(checkpoint)), MANIFEST).make("guidance", {})
    bounds = {name: inputs["cfg_normalization"].tolist() for name, inputs in found.items()}
    assert bounds.pop("smallest") == [0.0]
    assert bounds and all(bound == 1.0 for values in bounds.values() for bound in values)
