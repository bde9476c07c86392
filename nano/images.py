"""Training data of the transformer: drawn images of several sizes, encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from engine.plan.manifest import SEQUENCE_MULTIPLE, Rope
from engine.sampling import rope
from nano.autoencoder import to_tensor
from nano.layout import CheckpointSizes, transformer_config
from nano.scenes import SIZES, Scene, Style, draw_and_mark, training_scene
from nano.training import save

BATCH = 16  # images encoded at once
CAPTION = SEQUENCE_MULTIPLE  # tokens that every caption is padded to; the longest has 32


@dataclass(frozen=True, slots=True)
class Latents:
    """Encoded images of one size, and the scenes that they show."""

    scenes: Sequence[Scene]
    values: Tensor  # [N, 16, h, w] float16, normalised
    things: Tensor  # [N, 1, h, w] bool, whether a thing is there
    rope: tuple[Tensor, Tensor]  # cos and sin for this size and CAPTION tokens


def encode_images(
    vae: Any, count: int, style: Style, sizes: CheckpointSizes, file: Path, device: torch.device
) -> list[Latents]:
    """`count` images, shared among SIZES by the inverse of their area. What `file` holds is not encoded again."""
    shares = [1 / (height * width) for height, width in SIZES]
    counts = [max(1, round(count * share / sum(shares))) for share in shares]
    scenes = [_scenes(number, size) for number, size in zip(counts, SIZES, strict=True)]
    if not file.exists():
        save([_encode(vae, s, size, style, device) for s, size in zip(scenes, SIZES, strict=True)], file)
    encoded: list[tuple[Tensor, Tensor]] = torch.load(file, weights_only=True)
    tables = [_tables(size, sizes, device) for size in SIZES]
    return [Latents(s, *pair, table) for s, pair, table in zip(scenes, encoded, tables, strict=True)]


def _scenes(number: int, size: tuple[int, int]) -> list[Scene]:
    rng = Random(f"scenes of {size}")
    return [training_scene(rng) for _ in range(number)]


@torch.no_grad()
def _encode(
    vae: Any, scenes: list[Scene], size: tuple[int, int], style: Style, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`values` and `things` of Latents."""
    config, rng = vae.config, Random(f"images of {size}")
    values, things = [], []
    for start in track(range(0, len(scenes), BATCH), f"encoding {style} images of {size[1]} x {size[0]}"):
        drawn = [draw_and_mark(scene, *size, rng, style) for scene in scenes[start : start + BATCH]]
        with torch.autocast(device.type, torch.bfloat16):
            images = to_tensor([image for image, _ in drawn]).to(device)
            latents = vae.encode(images).latent_dist.mean.float()
        values.append(((latents - config.shift_factor) * config.scaling_factor).half().cpu())
        marks = torch.from_numpy(np.stack([mark for _, mark in drawn]))
        things.append(F.max_pool2d(marks[:, None], 8) > 0)
    return torch.cat(values), torch.cat(things)


def _tables(size: tuple[int, int], sizes: CheckpointSizes, device: torch.device) -> tuple[Tensor, Tensor]:
    theta = transformer_config(sizes)["rope_theta"]
    cos, sin = rope.tables(Rope(theta, sizes.axes_dims, sizes.axes_lens), size[0] // 16, size[1] // 16, CAPTION)
    return torch.tensor(cos, device=device), torch.tensor(sin, device=device)
