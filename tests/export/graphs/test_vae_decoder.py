"""The decoder's last nodes: levels of 8 bits, and the mean that shows NaN and Inf."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from export.graphs.vae_decoder import quantize


def test_values_are_clipped_and_rounded_half_to_even() -> None:
    values = torch.tensor([-1e9, -0.4, 0.5, 1.5, 2.5, 126.51, 254.6, 1e9]).expand(1, 3, 2, 8)
    image, mean = quantize(values)
    assert image.dtype == torch.uint8 and image.shape == (1, 2, 8, 3)
    assert image[0, 0, :, 0].tolist() == [0, 0, 0, 2, 2, 127, 255, 255]
    assert mean.tolist() == pytest.approx([values.mean().item()])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_mean_is_not_finite_if_any_latent_is_not(plan_directory: Path, value: float) -> None:
    session = ort.InferenceSession(plan_directory / "vae_decoder.onnx", providers=["CPUExecutionProvider"])
    latents = np.random.default_rng(0).standard_normal((2, 16, 8, 8), np.float32)
    latents[1, 3, 5, 2] = value
    image, mean = session.run(None, {"latents": latents})
    assert image.dtype == np.uint8
    assert np.isfinite(mean).tolist() == [True, False]
    assert mean[0] == pytest.approx(image[0].mean(), abs=30)  # of values that are not clipped
