"""The blend's graph against diffusers' scheduler, and what the mask leaves out."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from export.compile.parity import sample_inputs


def session(plan_directory: Path) -> ort.InferenceSession:
    return ort.InferenceSession(plan_directory / "blend.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("step", [0, 3, 7])
def test_blend_is_diffusers_scaled_noise_around_the_mask(plan_directory: Path, checkpoint: Path, step: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint / "scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    inputs = sample_inputs("blend", {"in_channels": 16}, height=8, width=12, tokens=1, batch=2)
    inputs["blend_sigma"][:] = scheduler.sigmas[step]
    [found] = session(plan_directory).run(None, inputs)
    image, noise = (torch.from_numpy(inputs[name]) for name in ("image_latents", "noise"))
    kept = scheduler.scale_noise(image, scheduler.timesteps[step].expand(2), noise).numpy()
    mask = inputs["mask"]
    assert np.array_equal(found, (1 - mask) * kept + mask * inputs["latents_to_blend"])


def test_nan_that_the_mask_leaves_out_does_not_spread(plan_directory: Path) -> None:
    inputs = sample_inputs("blend", {"in_channels": 16}, height=8, width=12, tokens=1, batch=1)
    outside = np.broadcast_to(inputs["mask"] == 0, inputs["latents_to_blend"].shape)
    inputs["latents_to_blend"][outside] = np.nan
    [found] = session(plan_directory).run(None, inputs)
    assert np.isfinite(found).all()
    inputs["latents_to_blend"][~outside] = np.nan
    [found] = session(plan_directory).run(None, inputs)
    assert np.array_equal(np.isnan(found), ~outside), "where it is drawn anew, it shows"
