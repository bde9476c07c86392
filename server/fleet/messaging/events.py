"""Events between the processes of a fleet, as msgpack. Knows their form; not how they travel.

`job` is the id of a job. An event says that something has changed: the truth is in the database, so a lost one costs a
preview or a second, never a result.
"""

from typing import Annotated, Literal

import msgspec

from engine.request import MAX_STEPS

MAX_BYTES = 4 << 20  # of one event; a preview has the size of its image, in few colours

Direction = Literal["events", "control"]  # from worker hosts to API replicas; from replicas and zimage-admin to hosts

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
Steps = Annotated[int, msgspec.Meta(ge=0, le=MAX_STEPS << 16)]  # of all images of a job


class InvalidEvent(Exception):
    """Bytes that are no event."""


class JobRunning(msgspec.Struct, frozen=True, tag=True):
    """A worker host has claimed a job."""

    job: Id


class StepsDone(msgspec.Struct, frozen=True, tag=True):
    """Steps of a job that are over, and steps in total, of all its images."""

    job: Id
    steps_done: Steps
    steps: Steps


class Preview(msgspec.Struct, frozen=True, tag=True):
    """An approximation of an image after `done` of its steps, as an image file."""

    job: Id
    index: Index
    done: Steps
    data: bytes


class ImageStored(msgspec.Struct, frozen=True, tag=True):
    """An image of a job is in the store."""

    job: Id
    index: Index


class JobEnded(msgspec.Struct, frozen=True, tag=True):
    """A job has its final state."""

    job: Id


class CancelJob(msgspec.Struct, frozen=True, tag=True):
    """The job was cancelled; the host that has it stops generating it."""

    job: Id


class DrainWorker(msgspec.Struct, frozen=True, tag=True):
    """The host takes no more jobs."""

    worker: Id


class WorkWaits(msgspec.Struct, frozen=True, tag=True):
    """A job was queued; hosts with room may claim it."""

    queue: Id


Event = JobRunning | StepsDone | Preview | ImageStored | JobEnded | CancelJob | DrainWorker | WorkWaits

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def direction(event: Event) -> Direction:
    return "control" if isinstance(event, CancelJob | DrainWorker | WorkWaits) else "events"


def encode(event: Event) -> bytes:
    return _encoder.encode(event)


def decode(body: bytes) -> Event:
    """Return the event in a message of the broker. Raises InvalidEvent."""
    if len(body) > MAX_BYTES:
        raise InvalidEvent(f"an event has at most {MAX_BYTES} bytes, got {len(body)}")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidEvent(str(error)) from None
