"""What is generated with: the weights of a checkpoint, or random ones of its sizes that are made on the device.

Equal names give equal tensors on equal devices, so everybody who generates from one source has the same weights.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.device import Device
from engine.errors import PlanMismatch
from engine.plan.manifest import Manifest
from export.checkpoint.files import COMPONENTS, Checkpoint, Component, open_checkpoint
from export.checkpoint.weights import Weight
from nano.layout import NANO, Z_IMAGE_TURBO, CheckpointSizes, configs
from nano.tokenizer import write_tokenizer

Configs = Mapping[str, dict[str, Any]]

SIZES = {"full": Z_IMAGE_TURBO, "nano": NANO}  # of --random-weights


@dataclass(frozen=True, slots=True)
class RandomWeight:
    """A tensor that no file holds: normal noise of a size that keeps activations of order 1."""

    source: str
    shape: tuple[int, ...]
    device: str = "cpu"

    def load(self) -> torch.Tensor:
        generator = torch.Generator(self.device)
        generator.manual_seed(zlib.crc32(self.source.encode()))  # equals would be stored once
        fan_in = self.shape[-1] if len(self.shape) == 2 else max(1, math.prod(self.shape[1:]))
        noise: torch.Tensor = torch.randn(self.shape, generator=generator, device=self.device) / fan_in**0.5
        return noise


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that may exist in name only.

    Attributes:
        configs: of "transformer", "text_encoder" and "vae", and the "scheduler"; known before any weight is.
        open: the checkpoint itself; its tensors are read or made when they are loaded.
    """

    name: str
    configs: Configs
    open: Callable[[], Checkpoint]

    @property
    def sample_size(self) -> int:
        """The side in pixels that the model generates by default."""
        return int(self.configs["vae"]["sample_size"])


def stored(model: str) -> Source:
    """A checkpoint in the official layout. Raises CheckpointError."""
    checkpoint = open_checkpoint(model)
    found = {name: getattr(checkpoint, name).config for name in COMPONENTS}
    return Source(checkpoint.name, found | {"scheduler": checkpoint.scheduler}, lambda: checkpoint)


def random(kind: str, device: Device, folder: Path) -> Source:
    """Random weights in the sizes of Z-Image-Turbo ("full") or z-image-nano ("nano").

    Args:
        folder: where the tokenizer, which is z-image-nano's, is written.
    """
    sizes = SIZES[kind]
    files = configs(sizes)
    found = {name: files[f"{name}/config.json"] for name in COMPONENTS}
    scheduler = files["scheduler/scheduler_config.json"]

    @cache
    def open_it() -> Checkpoint:
        write_tokenizer(folder / "tokenizer")
        parts = random_components(sizes, device.name)
        return Checkpoint(f"random-{kind}", folder, **parts, scheduler=scheduler)

    return Source(f"random-{kind}", found | {"scheduler": scheduler}, open_it)


def random_components(sizes: CheckpointSizes, device: str = "cpu") -> dict[str, Component]:
    """transformer, text_encoder and vae with the official names and shapes."""
    from nano.miniature import tensor_shapes  # asks DiffSynth's modules

    files = configs(sizes)

    def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight]:
        return {name: RandomWeight(name, shape, device) for name, shape in shapes.items()}

    return {
        name: Component(name, files[f"{name}/config.json"], weights(shapes), ())
        for name, shapes in tensor_shapes(sizes).items()
    }


def require_same_weights(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Raises PlanMismatch if the plans are of other weights."""
    if checkpoint.fingerprint() != manifest.model.weights_sha256 or manifest.model.loras:
        raise PlanMismatch(f"the plans are of {manifest.model.name} with other weights than {checkpoint.directory}")
