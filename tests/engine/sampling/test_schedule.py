"""Noise levels equal those of diffusers and DiffSynth."""

import numpy as np
import pytest
import torch
from diffsynth.diffusion.flow_match import FlowMatchScheduler
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import MAX_STEPS
from engine.sampling.schedule import sigmas

TOLERANCE = 2e-7  # absolute, on values up to 1: two roundings of float32, measured 1.2e-7
TURBO = [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0]  # Z-Image-Turbo's eight steps

steps_in_range = st.integers(1, MAX_STEPS)


def test_eight_steps_are_turbos_sigmas() -> None:
    ours = sigmas(8, 3.0)
    assert ours.dtype == np.float32
    assert ours.tolist() == pytest.approx(TURBO, abs=5e-5)


@settings(deadline=None)
@given(steps_in_range)
def test_sigmas_equal_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    np.testing.assert_allclose(sigmas(steps, 3.0), scheduler.sigmas.numpy(), rtol=0, atol=TOLERANCE)


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
