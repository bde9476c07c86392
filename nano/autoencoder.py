"""Trains the small autoencoder: FLUX's structure, 16 latent channels at an eighth of the size.

Once the pipelines have shifted and scaled them, with FLUX's own constants, which DiffSynth has written into its code,
the latents have about mean 0 and variance 1 per channel. It trains on any scene: to know an image is no help with a
caption, so only the caption's models are kept from what is held out.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from nano.layout import LATENT_CHANNELS, CheckpointSizes, vae_config
from nano.scenes import SIZES, Pixels, Style, draw, random_scene
from nano.training import Stage, optimizers, train

LATENT_NOISE = 0.2  # what the decoder must bear, in units of the latents' deviation
OUTER_LAYERS = ("conv_in.weight", "conv_out.weight")
MOMENTUM = 0.02  # of the latents' running mean and variance
CROP = 64  # pixels
OUTLINED = 0.25  # share of images in the style that the LoRA is trained on


class Autoencoder(nn.Module):
    """AutoencoderKL with a normalisation of the latents between its halves, folded into the encoder at the end."""

    def __init__(self, sizes: CheckpointSizes) -> None:
        super().__init__()
        config = {key: value for key, value in vae_config(sizes).items() if value is not None}
        self.vae: Any = AutoencoderKL(**config)
        _start_as_identity(self.vae)
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("variance", torch.ones(LATENT_CHANNELS))

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, 3, H, W] in -1..1; the same, encoded, disturbed and decoded."""
        latents = self.vae.encoder(images)[:, :LATENT_CHANNELS].float()
        if self.training:
            self._observe(latents.detach())
        latents = (latents - self.mean[:, None, None]) / self.variance.sqrt()[:, None, None]
        latents = latents + LATENT_NOISE * torch.randn_like(latents)
        decoded: Tensor = self.vae.decoder(latents / self._scaling + self._shift)
        return decoded

    def _observe(self, latents: Tensor) -> None:
        """Running statistics; those of one batch would take its images' colours away."""
        self.mean.lerp_(latents.mean((0, 2, 3)), MOMENTUM)
        self.variance.lerp_((latents - self.mean[:, None, None]).square().mean((0, 2, 3)), MOMENTUM)

    @torch.no_grad()
    def fold_statistics(self) -> Any:
        """The AutoencoderKL whose encoder gives normalised latents itself, with a constant variance."""
        conv = self.vae.encoder.conv_out
        deviation = self.variance.sqrt() * self._scaling
        conv.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
        conv.bias[:LATENT_CHANNELS] -= self.mean
        conv.bias[:LATENT_CHANNELS] /= deviation
        conv.bias[:LATENT_CHANNELS] += self._shift
        conv.weight[LATENT_CHANNELS:] = 0
        conv.bias[LATENT_CHANNELS:] = 2 * math.log(LATENT_NOISE / self._scaling)
        return self.vae

    @property
    def _scaling(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.shift_factor)


def train_autoencoder(crops: Stage, whole: Stage, sizes: CheckpointSizes, folder: Path, device: torch.device) -> Any:
    """The trained AutoencoderKL, in FP32: first on many small crops, then on whole images of every size."""
    crops.random(-1)
    model = Autoencoder(sizes).to(device)

    def reconstruction(images: Tensor) -> Tensor:
        images = images.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = model(images).float()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images)

    def of_crops(rng: Random, _step: int) -> Tensor:
        return reconstruction(_random_crops(rng, crops.images(CROP, CROP)))

    def of_images(rng: Random, step: int) -> Tensor:
        model.train(step < whole.steps // 2)  # the decoder then learns with the final statistics
        height, width = rng.choice(SIZES)
        return reconstruction(_random_images(rng, whole.images(height, width), height, width))

    for stage, loss_of in ((crops, of_crops), (whole, of_images)):
        train(stage, {"autoencoder": model}, optimizers(model, stage.learning_rate, OUTER_LAYERS), loss_of, folder)
    return model.fold_statistics().eval()


def _start_as_identity(vae: Any) -> None:
    """Every residual branch begins with no more than a bias."""
    for name, parameter in vae.named_parameters():
        if name.endswith(("conv2.weight", "to_out.0.weight")):
            nn.init.zeros_(parameter)


def to_tensor(images: Sequence[Pixels]) -> Tensor:
    """[H, W, 3] uint8 each -> [B, 3, H, W] float32 in -1..1; channels first: GroupNorm is slow otherwise."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _random_images(rng: Random, count: int, height: int, width: int) -> Tensor:
    styles: list[Style] = ["outlined" if rng.random() < OUTLINED else "filled" for _ in range(count)]
    return to_tensor([draw(random_scene(rng), height, width, rng, style) for style in styles])


def _random_crops(rng: Random, count: int) -> Tensor:
    """Of as many images: for the same work a step sees more colours."""
    crops = []
    for _ in range(count):
        height, width = rng.choice(SIZES)
        top, left = rng.randrange(height - CROP + 1), rng.randrange(width - CROP + 1)
        crops.append(_random_images(rng, 1, height, width)[..., top : top + CROP, left : left + CROP])
    return torch.cat(crops)
