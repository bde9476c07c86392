"""Training data of the transformer: images of scenes in several sizes, encoded once."""

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
from nano.scenes import SIZES, Scene, Style, draw_with_mask, training_scene
from nano.training import save

BATCH = 16  # images encoded at once
CAPTION_TOKENS = SEQUENCE_MULTIPLE  # tokens that every caption is padded to; the longest has 32


@dataclass(frozen=True, slots=True)
class Latents:
    """Encoded images of one size, with their scenes.

    Attributes:
        values: normalised latents, [N, 16, h, w] float16.
        things: True where a thing is, [N, 1, h, w] bool.
        rope: cos and sin for this size and CAPTION_TOKENS.
    """

    scenes: Sequence[Scene]
    values: Tensor
    things: Tensor
    rope: tuple[Tensor, Tensor]


def encode_images(
    vae: Any, count: int, style: Style, sizes: CheckpointSizes, file: Path, device: torch.device
) -> list[Latents]:
    """Draw and encode `count` images, divided among SIZES by the inverse of their area.

    Args:
        file: cache of the encoded images; if it exists, nothing is encoded.
    """
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
    """Return `values` and `things` of `Latents`."""
    config, rng = vae.config, Random(f"images of {size}")
    values, things = [], []
    for start in track(range(0, len(scenes), BATCH), f"encoding {style} images of {size[1]} x {size[0]}"):
        drawn = [draw_with_mask(scene, *size, rng, style) for scene in scenes[start : start + BATCH]]
        with torch.autocast(device.type, torch.bfloat16):
            images = to_tensor([image for image, _ in drawn]).to(device)
            latents = vae.encode(images).latent_dist.mean.float()
        values.append(((latents - config.shift_factor) * config.scaling_factor).half().cpu())
        masks = torch.from_numpy(np.stack([mask for _, mask in drawn]))
        things.append(F.max_pool2d(masks[:, None], 8) > 0)
    return torch.cat(values), torch.cat(things)


def _tables(size: tuple[int, int], sizes: CheckpointSizes, device: torch.device) -> tuple[Tensor, Tensor]:
    theta = transformer_config(sizes)["rope_theta"]
    cos, sin = rope.tables(Rope(theta, sizes.axes_dims, sizes.axes_lens), size[0] // 16, size[1] // 16, CAPTION_TOKENS)
    return torch.tensor(cos, device=device), torch.tensor(sin, device=device)
