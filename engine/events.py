"""What a step of `engine.loop` tells about pictures. Knows no memory and no engines."""

from dataclasses import dataclass

from engine.drawing import Drawing
from engine.errors import ZImageError
from engine.noise import Array


@dataclass(frozen=True, slots=True)
class Started:
    """The picture's prompt is encoded and its first step enqueued."""

    key: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step of a picture is over. `estimate`: [16, h, w] latents of what it will be, where a preview was asked for."""

    key: str
    done: int
    steps: int
    estimate: Array | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """All steps are over and the decoding is enqueued."""

    key: str
    drawing: Drawing


@dataclass(frozen=True, slots=True)
class Failed:
    key: str
    error: ZImageError


@dataclass(frozen=True, slots=True)
class Passed:
    """A forward pass of a batch is over."""

    batch: int
    seconds: float


Event = Started | Stepped | Drawn | Failed | Passed
