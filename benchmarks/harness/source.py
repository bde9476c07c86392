"""Weights for a benchmark: those of a checkpoint, or random ones in its sizes, made on the device.

Equal names give equal tensors on equal devices, so all runners of one source have the same weights.
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

SIZES = {"full": Z_IMAGE_TURBO, "nano": NANO}  # values of --random-weights


@dataclass(frozen=True, slots=True)
class RandomWeight:
    """A tensor of normal noise, seeded by its name and scaled to keep activations of order 1."""

    source: str
    shape: tuple[int, ...]
    device: str = "cpu"

    def load(self) -> torch.Tensor:
        generator = torch.Generator(self.device)
        generator.manual_seed(zlib.crc32(self.source.encode()))  # equal weights could be stored only once
        fan_in = self.shape[-1] if len(self.shape) == 2 else max(1, math.prod(self.shape[1:]))
        noise: torch.Tensor = torch.randn(self.shape, generator=generator, device=self.device) / fan_in**0.5
        return noise


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint, stored or random.

    Attributes:
        configs: configs of "transformer", "text_encoder", "vae" and "scheduler", available without any weight.
        open: returns the checkpoint; its tensors are read, or made, when they are loaded.
    """

    name: str
    configs: Configs
    open: Callable[[], Checkpoint]

    @property
    def sample_size(self) -> int:
        """Side in pixels that the model generates by default."""
        return int(self.configs["vae"]["sample_size"])


def stored(model: str) -> Source:
    """Open a checkpoint in the official layout.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    checkpoint = open_checkpoint(model)
    found = {name: getattr(checkpoint, name).config for name in COMPONENTS}
    return Source(checkpoint.name, found | {"scheduler": checkpoint.scheduler}, lambda: checkpoint)


def random(kind: str, device: Device, folder: Path) -> Source:
    """Make random weights in the sizes of Z-Image-Turbo ("full") or z-image-nano ("nano").

    Args:
        folder: folder that z-image-nano's tokenizer is written to.
    """
    sizes = SIZES[kind]
    files = configs(sizes)
    found = {name: files[f"{name}/config.json"] for name in COMPONENTS}
    scheduler = files["scheduler/scheduler_config.json"]

    @cache
    def open_random() -> Checkpoint:
        write_tokenizer(folder / "tokenizer")
        parts = random_components(sizes, device.name)
        return Checkpoint(f"random-{kind}", folder, **parts, scheduler=scheduler)

    return Source(f"random-{kind}", found | {"scheduler": scheduler}, open_random)


def random_components(sizes: CheckpointSizes, device: str = "cpu") -> dict[str, Component]:
    """Make transformer, text_encoder and vae with random weights under the official names."""
    from nano.miniature import tensor_shapes  # imports DiffSynth

    files = configs(sizes)

    def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight]:
        return {name: RandomWeight(name, shape, device) for name, shape in shapes.items()}

    return {
        name: Component(name, files[f"{name}/config.json"], weights(shapes), ())
        for name, shapes in tensor_shapes(sizes).items()
    }


def require_same_weights(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Raise PlanMismatch if the plans were built from other weights or with a LoRA."""
    if checkpoint.fingerprint() != manifest.model.weights_sha256 or manifest.model.loras:
        raise PlanMismatch(
            f"the plans of {manifest.model.name} were built from other weights than {checkpoint.directory}; "
            "build plans from this checkpoint, without a LoRA"
        )
