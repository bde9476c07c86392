"""What server and worker say to each other: msgpack frames over a socket pair, each with its length in front."""

import struct

import msgspec

from engine.images.metadata import ImageMetadata
from engine.request import ImageFormat, ImageRequest

LENGTH = struct.Struct(">I")


class Generate(msgspec.Struct, frozen=True, tag=True):
    """To the worker: one image. `previews`: how many to show on the way."""

    key: str
    request: ImageRequest
    format: ImageFormat
    previews: int = 0


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the worker: nobody wants it any more."""

    key: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To the worker: end in order."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the worker: plans are loaded and have generated. `unusable`: LoRAs that they do not take, and why."""

    seconds: float
    unusable: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag=True):
    """From the worker: these plans cannot be served, and why."""

    message: str


class Started(msgspec.Struct, frozen=True, tag=True):
    key: str


class Preview(msgspec.Struct, frozen=True, tag=True):
    """A small image of what it will be: an image file of `format`, as large as the image."""

    key: str
    done: int
    data: bytes


class Finished(msgspec.Struct, frozen=True, tag=True):
    """From the worker: an image, as the bytes of its file."""

    key: str
    data: bytes
    metadata: ImageMetadata


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An image that will not be, and why."""

    key: str
    code: str
    message: str


class Lost(msgspec.Struct, frozen=True, tag=True):
    """From the worker, its last word: the device or the plans failed and the process must be replaced."""

    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """From the worker, after passes: that it is alive, how far images are, and what metrics count.

    Attributes:
        passes: images in each, and seconds.
        done: steps, by image.
    """

    passes: list[tuple[int, float]]
    prompt_cache_hits: int
    prompt_cache_misses: int
    done: dict[str, int]


class DeviceMemory(msgspec.Struct, frozen=True, tag=True):
    """From the worker now and then: bytes of the GPU's memory that are taken, by whomever, and all there are."""

    taken: int
    total: int


class Switched(msgspec.Struct, frozen=True, tag=True):
    """From the worker: another LoRA, or none, is in the plans."""

    seconds: float


ToWorker = Generate | Cancel | Stop
FromWorker = Ready | Refused | Started | Preview | Finished | Failed | Lost | Heartbeat | DeviceMemory | Switched

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def frame(message: ToWorker | FromWorker) -> bytes:
    """The message as it goes over the socket."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def to_worker(body: bytes) -> ToWorker:
    """A frame's body, without its length."""
    return _to_worker.decode(body)


def from_worker(body: bytes) -> FromWorker:
    """A frame's body, without its length."""
    return _from_worker.decode(body)
