"""Messages between server and worker: msgpack over a socket pair, each after its length.

`job` is the id of a job; `key` names one image of it.
"""

import struct
from typing import Annotated, Literal

import msgspec

from engine.images.metadata import ImageMetadata
from engine.request import MAX_STEPS, ImageFormat, ImageRequest
from engine.stages import Seconds

LENGTH = struct.Struct(">I")
WINDOW = 4  # slots that an engine makes use of, unless it says otherwise
MAX_WINDOW = 1024
MAX_BYTES = 64 << 20  # of a message from a worker; an uncompressed image of 4096x4096 has 50 MB

Count = Annotated[int, msgspec.Meta(ge=0)]
UnixTime = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Window = Annotated[int, msgspec.Meta(ge=1, le=MAX_WINDOW)]
Steps = Annotated[int, msgspec.Meta(ge=0, le=MAX_STEPS)]


class InvalidMessage(Exception):
    """A message that no worker of this version sends; the worker must be replaced. Its text follows "it sent"."""


class Generate(msgspec.Struct, frozen=True, tag=True):
    """To the worker: generate images of a job, of which other workers may have others; show `previews` of each before.

    Attributes:
        request: of the first image of the job; see `ImageRequest.numbered`.
        indices: of the images to generate.
        client: name of the client, which gets an equal share of the worker's time.
        cost_factor: times which the job counts against that share.
        init_image: the image that the job begins with, as `packed_image.pack` returns it.
    """

    job: str
    request: ImageRequest
    format: ImageFormat
    indices: tuple[int, ...] = (0,)
    previews: int = 0
    client: str = ""
    cost_factor: float = 1.0
    init_image: bytes | None = None

    @property
    def key(self) -> str:
        """Key of its first image, by which a worker tells several messages about one job apart."""
        return image_key(self.job, self.indices[0])


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the worker: stop generating all images of a job that it has; `indices` are theirs."""

    job: str
    indices: tuple[int, ...] = (0,)


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To the worker: finish and exit."""


class SkipMeasurement(msgspec.Struct, frozen=True, tag=True):
    """To the worker: do not measure which batches gain, since a worker before it died of that."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the worker: the plans are loaded and have generated an image.

    Attributes:
        seconds: duration of the start.
        unusable_loras: a sentence for each LoRA that does not fit the plans.
        window: slots that the engine makes use of; more images at once are generated no sooner.
    """

    seconds: Seconds
    unusable_loras: tuple[str, ...] = ()
    window: Window = WINDOW


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """From the worker: the start failed. The worker's last message."""

    message: str


class Alive(msgspec.Struct, frozen=True, tag=True):
    """From the worker, twice a second: the process lives.

    Attributes:
        busy: seconds since a thread began the piece of work that it is doing, such as a step. Time in which the process
            was stopped does not count.
    """

    busy: Seconds


class Tokenizing(msgspec.Struct, frozen=True, tag=True):
    """From the worker: it is about to tokenize a job's prompts; None: it has finished that."""

    job: str | None


class Started(msgspec.Struct, frozen=True, tag=True):
    """From the worker: it is about to load an image's LoRA, or to enqueue the image's first step."""

    key: str


class PreviewReady(msgspec.Struct, frozen=True, tag=True):
    """From the worker: an approximation of an image, as an image file of its size and format.

    Attributes:
        done: steps that it shows.
    """

    key: str
    done: int
    data: bytes


class Finished(msgspec.Struct, frozen=True, tag=True):
    """From the worker: an image file."""

    key: str
    data: bytes
    metadata: ImageMetadata


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From the worker: an image cannot be generated."""

    key: str
    code: str
    message: str


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """From the worker: the device or the plans failed, so the process must be replaced. The worker's last message."""

    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """From the worker, after passes: their times, and the steps done.

    Attributes:
        passes: (images, seconds) of each pass since the last heartbeat.
        prompt_cache_hits, prompt_cache_misses: since the worker's start.
        steps_done: by key, where it has changed.
    """

    passes: list[tuple[Count, Seconds]]
    prompt_cache_hits: Count
    prompt_cache_misses: Count
    steps_done: dict[str, Steps]


class DeviceMemory(msgspec.Struct, frozen=True, tag=True):
    """From the worker, now and then: bytes of the GPU's memory, used by any process, and in total."""

    used: Count
    total: Count


class LoraSwitched(msgspec.Struct, frozen=True, tag=True):
    """From the worker: another LoRA, or none, is in the plans now. `seconds`: duration of the change."""

    seconds: Seconds


BatchingState = Literal["none", "waiting", "measuring", "measured", "failed"]


class MeasuredSize(msgspec.Struct, frozen=True):
    """The batch that gains most at a size.

    Attributes:
        best_batch: images in a forward pass.
        speedup: images per second, as a multiple of those one at a time.
    """

    width: Side
    height: Side
    best_batch: Window
    speedup: Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class Batching(msgspec.Struct, frozen=True, tag=True):
    """From the worker, at its start and at each change: which images share forward passes.

    Attributes:
        state: "measured" if there is a batch table; "waiting" until it is measured, when there is nothing to generate;
            "measuring" while it is; "failed" if it could not be; "none" if it is not to be.
        window: slots that the engine makes use of, as in `Ready`.
        machine: that measured the table.
        measured: Unix time of the measurement; 0 before it.
        sizes: that were measured.
    """

    state: BatchingState = "none"
    window: Window = WINDOW
    machine: str = ""
    measured: UnixTime = 0.0
    sizes: tuple[MeasuredSize, ...] = ()


ToWorker = Generate | Cancel | Stop | SkipMeasurement
FromWorker = (
    Ready
    | StartFailed
    | Alive
    | Tokenizing
    | Started
    | PreviewReady
    | Finished
    | Failed
    | Fatal
    | Heartbeat
    | DeviceMemory
    | LoraSwitched
    | Batching
)

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def image_key(job: str, index: int) -> str:
    """Return the key of an image."""
    return f"{job}:{index}"


def encode_frame(message: ToWorker | FromWorker) -> bytes:
    """Return a message with its length in front, as the socket carries it."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_to_worker(body: bytes) -> ToWorker:
    """Return the message of a frame, whose length was read before."""
    return _to_worker.decode(body)


def decode_from_worker(body: bytes) -> FromWorker:
    """Return the message of a frame, whose length was read before.

    Raises:
        InvalidMessage: it is no message, or has a number out of range.
    """
    try:
        return _from_worker.decode(body)
    except ValueError as error:  # of msgspec, or of a text that is not UTF-8
        raise InvalidMessage(f"no valid message: {error}") from error
