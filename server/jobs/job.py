"""A job: the images that one request asked for, and their state.

Knows neither the store nor HTTP.
"""

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine.images.metadata import ImageMetadata
from engine.request import ImageFormat, ImageRequest

MAX_SEQUENCE = 2**63 - 1  # signed, 64 bits
ID_PREFIX = "job_"

Priority = Literal["interactive", "batch"]
MAX_TOTAL_ATTEMPTS = 4  # of a job over several servers; a job that kills servers must not do so for ever
BATCH = "batch"  # share of all batch jobs
BATCH_FACTOR = 8.0  # a client with interactive jobs gets as many times the workers' time as all batch jobs together


class JobState(StrEnum):
    """State of a job. Queued and running may alternate; the others are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class JobError:
    """Reason for a job's failure: a code for programs and a message for people."""

    code: str
    message: str

    @property
    def is_transient(self) -> bool:
        """True if the same request, with its idempotency key, may be sent again and succeed."""
        return self.code == "worker_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request for images and its state. Times are unix seconds."""

    id: str
    request: ImageRequest  # of the first image; see `ImageRequest.numbered`
    image_count: int
    format: ImageFormat
    api: str  # dialect of the request, such as "openai"
    owner: str | None = None  # hash of an API key; None if the server has no keys
    durable: bool  # False: it is cancelled when its client disconnects
    idempotency_key: str | None = None  # unique per owner
    fingerprint: str  # hash of the body; a repeated key needs the same fingerprint
    created: float
    deadline: float | None = None
    client: str = ""  # name for equal shares of the workers' time, such as an address; "" in the store after its end
    previews: int = 0  # of each image
    priority: Priority = "interactive"
    model: str | None = None  # that it asks for; None for any
    plan_id: str | None = None  # of the plans that it must be generated with; None for any
    cost: float = 0.0  # pixels x forward passes x images
    trace: str | None = None  # `traceparent` of the request (W3C Trace Context)
    # set by the store
    state: JobState = JobState.QUEUED
    started: float | None = None  # time of the first attempt
    finished: float | None = None  # time of the final state
    attempts: int = 0  # number of workers that started to generate it
    error: JobError | None = None
    worker: str | None = None  # host that holds it
    lease: float | None = None  # time until which that host holds it
    steps_done: int = 0  # of all its images, as its host last reported
    sequence: int = 0  # order of acceptance, from 1

    @property
    def share(self) -> str:
        """Name of the client whose share of the workers' time it uses; all batch jobs count as those of one client."""
        return self.client if self.priority == "interactive" else BATCH

    @property
    def cost_factor(self) -> float:
        """Times which its cost counts against that share, so that interactive jobs come first."""
        return 1.0 if self.priority == "interactive" else BATCH_FACTOR


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in an image store."""

    name: str  # among the files of its job
    bytes: int


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StoredImage:
    """An encoded image of a job, with its metadata."""

    index: int  # into the job's requests
    media_type: str
    data: bytes  # empty if the image store has them and has not been asked
    metadata: ImageMetadata
    file: ImageFile | None = None  # None if the bytes are in the database


def new_id() -> str:
    """Return an id that cannot be guessed, since it is all that a client needs to read the job."""
    return f"{ID_PREFIX}{uuid.uuid4().hex}"
