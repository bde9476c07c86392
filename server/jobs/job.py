"""What a job is: the images that one request asked for, and how far they are.

Knows neither where jobs are kept nor HTTP.
"""

import uuid
from dataclasses import dataclass
from enum import StrEnum

from engine.images.metadata import ImageMetadata
from engine.request import ImageFormat, ImageRequest


class JobState(StrEnum):
    """queued and running may alternate; the others are for ever."""

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
    """Why a job failed: a code for programs, a message for people."""

    code: str
    message: str

    @property
    def is_transient(self) -> bool:
        """Whether the same request may come again, idempotency key and all, and be generated."""
        return self.code == "worker_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was asked for, and how far it is. Times in unix seconds."""

    id: str
    requests: tuple[ImageRequest, ...]  # one per image
    format: ImageFormat
    api: str  # which endpoint made it
    owner: str | None = None  # hash of an API key; None where the server asks for none
    durable: bool  # False: it lives only as long as the connection that asked
    idempotency_key: str | None = None  # unique per owner
    fingerprint: str  # hash of the body: tells a repeated request from another one with the same key
    created: float
    deadline: float | None = None
    # the store's
    state: JobState = JobState.QUEUED
    started: float | None = None  # the first time
    finished: float | None = None  # when the state became final
    attempts: int = 0  # how often a worker began to generate it
    error: JobError | None = None
    sequence: int = 0  # order of acceptance, from 1


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded image of a job, and how it was generated."""

    index: int  # into the job's requests
    media_type: str
    data: bytes
    metadata: ImageMetadata


def new_id() -> str:
    """An id that cannot be guessed: who knows it may ask for the job."""
    return f"job_{uuid.uuid4().hex}"
