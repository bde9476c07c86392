"""Events that `StepLoop.step` returns. Knows no memory and no engines."""

from dataclasses import dataclass
from typing import Protocol

from engine.array import Array
from engine.errors import ZImageError
from engine.images.generated import GeneratedImage
from engine.scheduler.sample import Sample


class DenoisedImage(Protocol):
    """An image whose steps are over: `engine.scheduler.pending_image.PendingImage`, or one that is there at once."""

    @property
    def sample(self) -> Sample:
        """The image before it was decoded."""
        ...

    def finish(self) -> GeneratedImage:
        """Wait for the image. Raises NonFiniteOutput, DeviceError."""
        ...


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
    pending: DenoisedImage


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
