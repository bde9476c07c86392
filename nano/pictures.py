"""Training data of the transformer: drawn pictures of several sizes, encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from engine import rope
from engine.manifest import SEQUENCE_MULTIPLE, Rope
from nano.autoencoder import to_tensor
from nano.layout import CheckpointSizes, transformer_config
from nano.scenes import Scene, Style, draw, training_scene
from nano.training import SIZES

BATCH = 16  # pictures encoded at once
CAPTION = SEQUENCE_MULTIPLE  # tokens that every caption is padded to; the longest has 31


@dataclass(frozen=True, slots=True)
class Latents:
    """Encoded pictures of one size, and the scenes that they show."""

    scenes: Sequence[Scene]
    values: Tensor  # [N, 16, h, w] float16, normalised
    rope: tuple[Tensor, Tensor]  # cos and sin for this size and CAPTION tokens


def encode_pictures(
    vae: Any, count: int, style: Style, sizes: CheckpointSizes, file: Path, device: torch.device
) -> list[Latents]:
    """`count` pictures, shared among SIZES by the inverse of their area. What `file` holds is not encoded again."""
    shares = [1 / (height * width) for height, width in SIZES]
    counts = [max(1, round(count * share / sum(shares))) for share in shares]
    scenes = [_scenes(number, size) for number, size in zip(counts, SIZES, strict=True)]
    if not file.exists():
        encoded = [_encode(vae, s, size, style, device) for s, size in zip(scenes, SIZES, strict=True)]
        torch.save(encoded, file)
    values = torch.load(file, weights_only=True)
    tables = [_tables(size, sizes, device) for size in SIZES]
    return [Latents(*of_size) for of_size in zip(scenes, values, tables, strict=True)]


def _scenes(number: int, size: tuple[int, int]) -> list[Scene]:
    rng = Random(f"scenes of {size}")
    return [training_scene(rng) for _ in range(number)]


@torch.no_grad()
def _encode(vae: Any, scenes: list[Scene], size: tuple[int, int], style: Style, device: torch.device) -> Tensor:
    config, rng, encoded = vae.config, Random(f"pictures of {size}"), []
    for start in track(range(0, len(scenes), BATCH), f"encoding {style} pictures of {size[1]} x {size[0]}"):
        pictures = to_tensor([draw(scene, *size, rng, style) for scene in scenes[start : start + BATCH]])
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(pictures.to(device)).latent_dist.mean.float()
        encoded.append(((latents - config.shift_factor) * config.scaling_factor).half().cpu())
    return torch.cat(encoded)


def _tables(size: tuple[int, int], sizes: CheckpointSizes, device: torch.device) -> tuple[Tensor, Tensor]:
    theta = transformer_config(sizes)["rope_theta"]
    cos, sin = rope.tables(Rope(theta, sizes.axes_dims, sizes.axes_lens), size[0] // 16, size[1] // 16, CAPTION)
    return torch.from_numpy(cos).to(device), torch.from_numpy(sin).to(device)
