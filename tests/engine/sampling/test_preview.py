"""Previews of unfinished images: the fitted projection, the estimate after a step, and both on real images."""

import io
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.console import Console

from benchmarks.harness.pixels import psnr
from engine.errors import CheckpointError
from engine.pipeline import Pipeline
from engine.plan.manifest import PreviewProjection
from engine.sampling.noise import randn
from engine.sampling.preview import estimate, project
from engine.sampling.schedule import sigmas
from engine.size import Size
from export.build import fit_preview
from export.checkpoint import models
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.compile.preview import average, draw, encode, fit
from export.progress import BuildProgress
from nano import scenes

STEPS = 8
SIDE = 128  # pixels
PROMPTS = {
    "a red circle on a blue background": 7,
    "a small green star to the left of a large yellow square": 3,
    "a white heart on a black background": 5,
    "a purple cross on a background that fades from orange to cyan": 1,
}
RAMP = PreviewProjection(tuple((float(c), -2.0 * c, 0.5) for c in range(16)), (100.0, 200.0, 30.0), 1.0)


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint))


@pytest.fixture(scope="module")
def encoder(opened: Checkpoint) -> models.Model:
    found = models.vae_encoder(opened.vae)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def fitted(encoder: models.Model) -> PreviewProjection:
    return fit(encoder)


def r_squared(got: np.ndarray, expected: np.ndarray) -> float:
    """Over all colours, against the mean of each."""
    return 1 - np.square(got - expected).sum() / np.square(expected - expected.mean((0, 1, 2))).sum()


def test_fit_explains_unseen_images(encoder: models.Model, fitted: PreviewProjection) -> None:
    """0.915 of the images that `fit` held out, and 0.907 of scenes as the small model generates them."""
    assert 0.85 < fitted.r2 < 1
    rng = Random(1)
    images = [scenes.draw(scenes.random_scene(rng), SIDE, SIDE, rng).astype(float) for _ in range(8)]
    latents = encode(encoder, images)
    colours = np.stack([project(fitted, one.astype(np.float32)) for one in latents]).astype(float)
    found = r_squared(colours, np.stack([average(image, 8) for image in images]))
    print(f"R2 held out {fitted.r2:.3f}, scenes {found:.3f}")
    assert found > 0.85


def test_latents_equal_the_mode_that_diffusers_encodes(checkpoint: Path, encoder: models.Model) -> None:
    """Relative L2, measured 0: the same operations in FP32. Latents without the shift would be 4.5e-2 away."""
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    image = draw(64, 96, np.random.default_rng(1))
    with torch.no_grad():
        mode = vae.encode(torch.from_numpy(image).float().permute(2, 0, 1)[None] / 127.5 - 1).latent_dist.mode()
    expected = ((mode - vae.config.shift_factor) * vae.config.scaling_factor).numpy()
    latents = encode(encoder, [image])
    assert latents.shape == (1, 16, 8, 12)
    assert np.linalg.norm(latents - expected) < 1e-4 * np.linalg.norm(expected)


class AffineEncoder:
    """An encoder whose latents hold the mean colour of 8x8 pixels in three of sixteen channels."""

    def load(self) -> Any:
        return lambda images: F.pad(F.avg_pool2d(images, 8) * 2 + 3, (0, 0, 0, 0, 5, 8))


def test_affine_encoder_is_fitted_exactly() -> None:
    encoder: Any = AffineEncoder()
    preview = fit(encoder)
    assert preview.r2 > 1 - 1e-9
    expected = np.zeros((16, 3))
    expected[5:8] = np.eye(3) * 127.5 / 2
    assert np.allclose(preview.weights, expected, atol=1e-3)
    assert np.allclose(preview.bias, 127.5 - 3 * 127.5 / 2, atol=1e-3)
    image = draw(64, 96, np.random.default_rng(2))
    shown = project(preview, encode(encoder, [image])[0].astype(np.float32))
    assert np.abs(shown - average(image, 8)).max() < 0.51


def test_generated_images_have_many_colours() -> None:
    """A fit on grey or plain images would not hold for others."""
    rng = np.random.default_rng(0)
    images = np.stack([draw(64, 96, rng) for _ in range(16)])
    assert images.shape == (16, 64, 96, 3)
    assert images.min() >= 0 and images.max() <= 255
    means = images.mean((1, 2))
    assert means.std(0).min() > 20
    assert np.linalg.matrix_rank(means - means.mean(0), tol=50) == 3
    assert np.median(images.std((1, 2))) > 30
    assert np.array_equal(draw(64, 64, np.random.default_rng(3)), draw(64, 64, np.random.default_rng(3)))


def test_projection_is_the_affine_map_clipped_and_rounded() -> None:
    latents = np.random.default_rng(0).integers(-8, 9, (16, 3, 5)).astype(np.float32) / 8
    expected = np.zeros((3, 5, 3))
    for y in range(3):
        for x in range(5):
            for colour in range(3):
                total = sum(float(latents[c, y, x]) * RAMP.weights[c][colour] for c in range(16))
                expected[y, x, colour] = total + RAMP.bias[colour]
    shown = project(RAMP, latents)
    assert shown.dtype == np.uint8
    assert expected.min() > 0 and expected.max() < 255, "nothing of it is clipped"
    assert np.array_equal(shown, np.rint(expected))
    assert project(RAMP, 100 * np.ones((16, 1, 1), np.float32)).tolist() == [[[255, 0, 255]]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_projection_of_nonfinite_latents_does_not_raise(value: float) -> None:
    """The pipeline reports such an image; its preview must not raise first."""
    latents = np.zeros((16, 2, 2), np.float32)
    latents[:, 0, 1] = value
    shown = project(RAMP, estimate(latents, latents, 0.5, 0.25))
    assert shown[0, 0].tolist() == shown[1, 1].tolist() == [100, 200, 30]
    if np.isnan(value):
        assert shown[0, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.75), (0.75, 0.5), (0.5, 0.0)])
def test_estimate_follows_a_straight_path_to_its_end(sigma: float, sigma_next: float) -> None:
    """In eighths, which binary fractions hold: to the bit."""
    rng = np.random.default_rng(0)
    end, noise = (rng.integers(-32, 33, (1, 16, 4, 6)).astype(np.float32) / 8 for _ in range(2))
    at, after = (end + level * (noise - end) for level in (np.float32(sigma), np.float32(sigma_next)))
    found = estimate(at, after, np.float32(sigma), np.float32(sigma_next))
    assert found.dtype == np.float32
    assert np.array_equal(found, end)


def test_last_estimate_equals_the_decoded_latents() -> None:
    latents, latents_next = randn(0, (1, 16, 4, 4)), randn(1, (1, 16, 4, 4))
    *_, sigma, sigma_next = sigmas(STEPS, 3.0)
    assert np.array_equal(estimate(latents, latents_next, sigma, sigma_next), latents_next)


def generated(pipeline: Pipeline, prompt: str, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The previews after each step, that of the first step's noisy latents, and the image at a preview's size."""
    preview = pipeline.manifest.preview
    assert preview is not None
    schedule = sigmas(STEPS, pipeline.manifest.model.schedule_shift)
    prompt_embeds = pipeline.encode_prompt([pipeline.tokenize(prompt)])
    path = [pipeline.noise(seed, Size(SIDE, SIDE))]
    for step in range(STEPS):
        path.append(pipeline.denoise(prompt_embeds, path[-1], schedule[step : step + 2]).copy())
    previews = [project(preview, estimate(path[i], path[i + 1], schedule[i], schedule[i + 1])[0]) for i in range(STEPS)]
    image = average(pipeline.decode(path[-1]).wait().astype(float), 8)
    return previews, project(preview, path[1][0]), np.rint(image).astype(np.uint8)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_previews_come_closer_to_the_image(plan_directory: Path, fitted: PreviewProjection) -> None:
    """Correlation with the finished image at an eighth of its size, mean of four images: 0.90 after step 1, 0.96
    after step 4 and after step 8; PSNR 19.0, 20.4 and 20.9 dB. Of the noisy latents after step 1: 0.01."""
    with Pipeline.load(plan_directory) as pipeline:
        own = pipeline.manifest.preview
        assert own is not None
        assert np.allclose(own.weights, fitted.weights, atol=0.01)
        images = [generated(pipeline, prompt, seed) for prompt, seed in PROMPTS.items()]
    closeness = np.mean([[correlation(shown, image) for shown in previews] for previews, _, image in images], 0)
    decibels = np.mean([[psnr(shown, image) for shown in previews] for previews, _, image in images], 0)
    noisy = np.mean([correlation(shown, image) for _, shown, image in images])
    print(f"correlation {closeness.round(3)}, PSNR {decibels.round(1)} dB; of noisy latents {noisy:.2f}")
    assert closeness[0] > 0.8 and closeness[3] > 0.92 and closeness[7] > 0.93
    assert decibels[0] > 17 and decibels[3] > 18.5 and decibels[7] > 19
    assert closeness[7] > closeness[0] + 0.02 and decibels[7] > decibels[0] + 0.5
    assert np.diff(closeness).min() > -0.01, "a step leads away from the image"
    assert noisy < 0.3


def test_checkpoint_without_an_encoder_builds_without_previews(opened: Checkpoint) -> None:
    said = io.StringIO()
    decoder = {name: weight for name, weight in opened.vae.weights.items() if name.startswith("decoder.")}
    trimmed = replace(opened, vae=replace(opened.vae, weights=decoder))
    assert fit_preview(trimmed, BuildProgress(Console(file=said, width=200))) is None
    assert said.getvalue() == "z-image-nano will have no previews: its vae/ has no encoder to fit them with\n"
    models.vae_decoder(trimmed.vae)


def test_encoder_without_a_tensor_is_refused(opened: Checkpoint) -> None:
    weights = dict(opened.vae.weights)
    del weights["encoder.down_blocks.1.downsamplers.0.conv.bias"]
    with pytest.raises(CheckpointError, match=r"missing: encoder\.down_blocks\.1\.downsamplers\.0\.conv\.bias"):
        models.vae_encoder(replace(opened.vae, weights=weights))


def test_encoder_with_a_quant_convolution_is_refused(opened: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="use_quant_conv must be False"):
        models.vae_encoder(replace(opened.vae, config=dict(opened.vae.config) | {"use_quant_conv": True}))


def test_encoder_of_nan_is_refused(opened: Checkpoint) -> None:
    class Broken:
        shape = (16,)
        source = "a test"

        def load(self) -> torch.Tensor:
            return torch.full(self.shape, torch.nan)

    weights = dict(opened.vae.weights) | {"encoder.conv_in.bias": Broken()}
    encoder = models.vae_encoder(replace(opened.vae, weights=weights))
    assert encoder is not None
    with pytest.raises(CheckpointError, match="output for an image has NaN or Inf"):
        fit(encoder)
