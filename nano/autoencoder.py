"""Training of the small autoencoder: FLUX's structure, 16 latent channels at an eighth of the image size.

After the pipelines have shifted and scaled them by FLUX's constants, which DiffSynth has in its code, the latents have
about mean 0 and variance 1 per channel. The autoencoder trains on held-out scenes too: it never sees captions, so this
does not help the other models with a held-out caption.
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

LATENT_NOISE = 0.2  # noise added before the decoder, in units of the latents' standard deviation
OUTER_LAYERS = ("conv_in.weight", "conv_out.weight")
MOMENTUM = 0.02  # momentum of the latents' running mean and variance
CROP = 64  # side of a crop in pixels
OUTLINED = 0.25  # share of images in the LoRA's style


class Autoencoder(nn.Module):
    """AutoencoderKL with normalised latents. `fold_statistics` folds the normalisation into the encoder."""

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
        """Encode images, add noise to the latents, and decode them: [B, 3, H, W] in -1..1 -> the same shape."""
        latents = self.vae.encoder(images)[:, :LATENT_CHANNELS].float()
        if self.training:
            self._observe(latents.detach())
        latents = (latents - self.mean[:, None, None]) / self.variance.sqrt()[:, None, None]
        latents = latents + LATENT_NOISE * torch.randn_like(latents)
        decoded: Tensor = self.vae.decoder(latents / self._scaling + self._shift)
        return decoded

    def _observe(self, latents: Tensor) -> None:
        """Update the running statistics. Statistics of a single batch would remove the colours of its images."""
        self.mean.lerp_(latents.mean((0, 2, 3)), MOMENTUM)
        self.variance.lerp_((latents - self.mean[:, None, None]).square().mean((0, 2, 3)), MOMENTUM)

    @torch.no_grad()
    def fold_statistics(self) -> Any:
        """Return an AutoencoderKL whose encoder outputs normalised latents with a constant variance."""
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
    """Train an AutoencoderKL in FP32, first on many small crops, then on whole images of every size."""
    crops.random(-1)
    model = Autoencoder(sizes).to(device)

    def reconstruction(images: Tensor) -> Tensor:
        images = images.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = model(images).float()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images)

    def crop_loss(rng: Random, _step: int) -> Tensor:
        return reconstruction(_random_crops(rng, crops.images(CROP, CROP)))

    def image_loss(rng: Random, step: int) -> Tensor:
        model.train(step < whole.steps // 2)  # eval in the second half: the decoder learns with the final statistics
        height, width = rng.choice(SIZES)
        return reconstruction(_random_images(rng, whole.images(height, width), height, width))

    for stage, loss_of in ((crops, crop_loss), (whole, image_loss)):
        train(stage, {"autoencoder": model}, optimizers(model, stage.learning_rate, OUTER_LAYERS), loss_of, folder)
    return model.fold_statistics().eval()


def to_tensor(images: Sequence[Pixels]) -> Tensor:
    """Stack images [H, W, 3] uint8 to [B, 3, H, W] float32 in -1..1, contiguous because GroupNorm is slow otherwise."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _start_as_identity(vae: Any) -> None:
    """Zero the last weights of every residual branch, so that each starts with no more than a bias."""
    for name, parameter in vae.named_parameters():
        if name.endswith(("conv2.weight", "to_out.0.weight")):
            nn.init.zeros_(parameter)


def _random_images(rng: Random, count: int, height: int, width: int) -> Tensor:
    styles: list[Style] = ["outlined" if rng.random() < OUTLINED else "filled" for _ in range(count)]
    return to_tensor([draw(random_scene(rng), height, width, rng, style) for style in styles])


def _random_crops(rng: Random, count: int) -> Tensor:
    """Take one crop per image: a step then sees more colours for the same work."""
    crops = []
    for _ in range(count):
        height, width = rng.choice(SIZES)
        top, left = rng.randrange(height - CROP + 1), rng.randrange(width - CROP + 1)
        crops.append(_random_images(rng, 1, height, width)[..., top : top + CROP, left : left + CROP])
    return torch.cat(crops)
