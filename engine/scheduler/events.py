"""What a step of `engine.scheduler.loop` tells. Knows no memory and no engines."""

from dataclasses import dataclass

from engine.errors import ZImageError
from engine.sampling.noise import Array
from engine.scheduler.pending_image import PendingImage


@dataclass(frozen=True, slots=True)
class Started:
    """It is the image's turn: its LoRA is about to be put in, or its first step to be enqueued."""

    key: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step of an image is over. `estimate`: [16, h, w] latents of what it will be, where a preview was asked for."""

    key: str
    done: int
    steps: int
    estimate: Array | None = None


@dataclass(frozen=True, slots=True)
class Denoised:
    """All steps are over and the decoding is enqueued."""

    key: str
    pending: PendingImage


@dataclass(frozen=True, slots=True)
class Failed:
    key: str
    error: ZImageError


@dataclass(frozen=True, slots=True)
class Passed:
    """A forward pass of a batch is over."""

    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Switched:
    """Another LoRA, or none, is in the plans."""

    seconds: float


Event = Started | Stepped | Denoised | Failed | Passed | Switched
