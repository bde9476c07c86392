"""Noise levels equal those of diffusers and DiffSynth."""

import numpy as np
import pytest
import torch
from diffsynth.diffusion.flow_match import FlowMatchScheduler
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.noise_levels import guided_steps, noise_levels
from engine.request import MAX_STEPS, Edit
from engine.sampling.schedule import sigmas

TOLERANCE = 2e-7  # absolute, on values up to 1: two roundings of float32, measured 1.2e-7
HAS_FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
TURBO = [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0]  # Z-Image-Turbo's eight steps

steps_in_range = st.integers(1, MAX_STEPS)


def test_eight_steps_are_turbos_sigmas() -> None:
    ours = sigmas(8, 3.0)
    assert ours.dtype == np.float32
    assert ours.tolist() == pytest.approx(TURBO, abs=5e-5)


def of_diffusers(steps: int, shift: float) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    return scheduler


@settings(deadline=None)
@given(steps_in_range, st.sampled_from([1.0, 3.0, 6.0]) | st.floats(0.1, 20))
def test_sigmas_equal_diffusers(steps: int, shift: float) -> None:
    """Bit for bit where PyTorch computes its linspace with fused multiply-add, as all of today's x86 CPUs do."""
    tolerance = 0.0 if HAS_FUSED else TOLERANCE
    theirs = of_diffusers(steps, shift).sigmas.numpy()
    np.testing.assert_allclose(sigmas(steps, shift), theirs, rtol=0, atol=tolerance)


@pytest.mark.skipif(not HAS_FUSED, reason="needs a CPU with fused multiply-add: a last bit decides")
@settings(deadline=None)
@given(steps_in_range, st.sampled_from([3.0, 6.0]), st.integers(0, 100) | st.floats(0, 100))
@example(50, 6.0, 30)  # step 36 begins at a progress of 0.3 but for rounding
@example(8, 3.0, 50)
def test_guided_steps_are_those_of_diffusers(steps: int, shift: float, percent: float) -> None:
    """As in `ZImagePipeline.__call__`, and also at the progress of each step itself."""
    progress = ((1000 - of_diffusers(steps, shift).timesteps.float()) / 1000).tolist()
    for truncation in (percent / 100, *progress):
        guided = [not begun > truncation for begun in progress]
        assert guided == sorted(guided, reverse=True)
        assert guided_steps(noise_levels(steps, shift), truncation) == sum(guided)


@settings(deadline=None)
@given(steps_in_range, st.sampled_from([1.0, 3.0, 6.0]))
def test_values_equal_diffsynths(steps: int, shift: float) -> None:
    theirs, _ = FlowMatchScheduler("Z-Image").set_timesteps_fn(steps, shift=shift)
    theirs = torch.cat([theirs, torch.zeros(1)])  # its pipeline steps to 0 last
    np.testing.assert_allclose(sigmas(steps, shift), theirs.numpy(), rtol=0, atol=TOLERANCE)


@settings(deadline=None)
@given(steps_in_range, st.floats(0.1, 20))
def test_sigmas_fall_from_one_to_zero(steps: int, shift: float) -> None:
    ours = sigmas(steps, shift)
    assert len(ours) == steps + 1
    assert (ours[0], ours[-1]) == (pytest.approx(1, abs=1e-6), 0)
    assert (np.diff(ours) < 0).all()


@settings(deadline=None)
@given(steps_in_range, st.floats(0, 1) | st.integers(0, 100).map(lambda percent: percent / 100))
def test_steps_skipped_for_an_init_image_equal_diffusers(steps: int, strength: float) -> None:
    """Also where a product such as 0.07 * 100 is not a whole number."""

    class Parts:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)

    Parts.scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    timesteps, left = ZImageImg2ImgPipeline.get_timesteps(Parts(), steps, strength, "cpu")
    skipped = Edit(strength, "").skipped_steps(steps)
    assert (len(timesteps), left) == (steps - skipped, steps - skipped)
    if left:
        assert timesteps[0].item() == pytest.approx(1000 * sigmas(steps, 3.0)[skipped], abs=1e-3)


@pytest.mark.parametrize(
    ("steps", "strength", "skipped"), [(8, 0.6, 3), (8, 1.0, 0), (8, 0.0, 8), (8, 0.01, 7), (1, 0.5, 0), (50, 0.3, 35)]
)
def test_an_init_image_skips_the_first_steps(steps: int, strength: float, skipped: int) -> None:
    assert Edit(strength, "").skipped_steps(steps) == skipped
