"""Trains the small autoencoder: FLUX's structure, 16 latent channels at an eighth of the size.

The latents come out with mean 0 and variance 1 per channel once the pipelines have shifted and scaled them, with
FLUX's own constants, which DiffSynth has written into its code.
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
from nano.scenes import Pixels, Style, draw, random_scene
from nano.training import SIZES, Stage, train

LATENT_NOISE = 0.1  # what the decoder must bear, in units of the latents' deviation
MOMENTUM = 0.02  # of the latents' running mean and variance
CROP = 64
CROPPED = 0.7  # share of the stage, the first part
OUTLINED = 0.25  # share of pictures in the style that the LoRA is trained on
FREEZE_STATISTICS = 0.6  # share of the stage; the decoder then learns with the final scaling


class Autoencoder(nn.Module):
    """AutoencoderKL with a normalisation of the latents between its halves, folded into the encoder at the end."""

    def __init__(self, sizes: CheckpointSizes) -> None:
        super().__init__()
        config = {key: value for key, value in vae_config(sizes).items() if value is not None}
        self.vae: Any = AutoencoderKL(**config)
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("variance", torch.ones(LATENT_CHANNELS))

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures: [B, 3, H, W] in -1..1; the same, encoded, disturbed and decoded."""
        latents = self.vae.encoder(pictures)[:, :LATENT_CHANNELS].float()
        if self.training:
            self._observe(latents.detach())
        latents = (latents - self.mean[:, None, None]) / self.variance.sqrt()[:, None, None]
        latents = latents + LATENT_NOISE * torch.randn_like(latents)
        decoded: Tensor = self.vae.decoder(latents / self._scaling + self._shift)
        return decoded

    def _observe(self, latents: Tensor) -> None:
        """Running statistics; those of one batch would take its pictures' colours away."""
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


def train_autoencoder(stage: Stage, sizes: CheckpointSizes, folder: Path, device: torch.device) -> Any:
    """The trained AutoencoderKL, in FP32."""
    stage.random(-1)
    model = Autoencoder(sizes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)

    def loss_of(rng: Random, step: int) -> Tensor:
        model.train(step < FREEZE_STATISTICS * stage.steps)
        pictures = _random_pictures(stage, rng, crop=step < CROPPED * stage.steps).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = model(pictures).float()
        return F.l1_loss(decoded, pictures) + F.mse_loss(decoded, pictures)

    train(stage, {"autoencoder": model}, [optimizer], loss_of, folder)
    return model.fold_statistics().eval()


def to_tensor(pictures: Sequence[Pixels]) -> Tensor:
    """[H, W, 3] uint8 each -> [B, 3, H, W] float32 in -1..1; channels first: GroupNorm is slow otherwise."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _random_pictures(stage: Stage, rng: Random, crop: bool) -> Tensor:
    """Whole pictures of one size, or as many pixels in squares of CROP pixels: more pictures for the same work."""
    height, width = rng.choice(SIZES)
    count = stage.batch * (128 // CROP) ** 2 if crop else stage.pictures(height, width)
    pictures = []
    for _ in range(count):
        style: Style = "outlined" if rng.random() < OUTLINED else "filled"
        picture = draw(random_scene(rng), height, width, rng, style)
        if crop:
            top, left = rng.randrange(height - CROP + 1), rng.randrange(width - CROP + 1)
            picture = picture[top : top + CROP, left : left + CROP]
        pictures.append(picture)
    return to_tensor(pictures)
