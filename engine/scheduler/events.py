"""Events that `EngineLoop.step` returns. Knows no memory and no engines."""

from dataclasses import dataclass

from engine.array import Array
from engine.errors import ZImageError
from engine.scheduler.pending_image import PendingImage


@dataclass(frozen=True, slots=True)
class Started:
    """An image is about to begin: its LoRA is applied, or its first step enqueued, in the next step of the loop."""

    key: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step of an image is over.

    Attributes:
        done, steps: steps that are over, and steps in all.
        estimate: [16, h, w] estimate of the final latents, after steps for which a preview was requested.
    """

    key: str
    done: int
    steps: int
    estimate: Array | None = None


@dataclass(frozen=True, slots=True)
class Denoised:
    """All steps of an image are over, and its decoding is enqueued."""

    key: str
    pending: PendingImage


@dataclass(frozen=True, slots=True)
class Failed:
    """An image failed; the loop has dropped it."""

    key: str
    error: ZImageError


@dataclass(frozen=True, slots=True)
class Passed:
    """A forward pass is over.

    Attributes:
        batch: rows of the batch.
        seconds: device time.
    """

    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Switched:
    """Another LoRA, or none, was applied to the plans; the change took `seconds`."""

    seconds: float


Event = Started | Stepped | Denoised | Failed | Passed | Switched
