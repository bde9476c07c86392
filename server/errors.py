"""The exceptions of the server, in the one tree of `engine.errors`.

    ZImageError
    |- JobRefused               a job is not accepted now; `code` for programs, `retry_after` in seconds
    |  |- QueueFull             as many jobs are unfinished as the server takes
    |  |- DeadlineUnreachable   the images would be late
    |  |- MemoryShort           the machine has too little free memory
    |  |- WorkerUnavailable     no worker can be started
    |  |- UploadsBusy           too many uploads wait to be decoded
    |- TooManyFollowers         too many clients follow the job
    |- IdempotencyKeyReused     a known idempotency key with another request
    |- JobNotFound              a job that was deleted, or never was
    |- StoreUnavailable         the store of jobs cannot be read or written now
    |- WorkerStartFailed        a worker ended before it was ready
    |- ApiError                 an HTTP answer; in `server.api.errors`

The codes are part of the HTTP API.
"""

from typing import ClassVar

from engine.errors import ZImageError


class JobRefused(ZImageError):
    """A job that is not accepted now. The same request may be accepted in `retry_after` seconds."""

    code: ClassVar[str]

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(JobRefused):
    """As many jobs are unfinished as the server takes.

    Args:
        taken, own: unfinished jobs of all clients, and of this one.
    """

    code = "queue_full"

    def __init__(self, message: str, retry_after: float, taken: int = 0, own: int = 0) -> None:
        super().__init__(message, retry_after)
        self.taken, self.own = taken, own


class DeadlineUnreachable(JobRefused):
    """The images would not be finished before the job's deadline."""

    code = "deadline_unreachable"


class MemoryShort(JobRefused):
    """The machine, or the container, has too little free memory."""

    code = "out_of_memory"


class WorkerUnavailable(JobRefused):
    """Starting a worker failed too often in a row."""

    code = "worker_unavailable"


class UploadsBusy(JobRefused):
    """Too many uploads wait to be decoded, or the machine has no time or memory for it."""

    code = "uploads_busy"


class TooManyFollowers(ZImageError):
    """Too many clients follow the job."""


class IdempotencyKeyReused(ZImageError):
    """An idempotency key came again with another request."""


class JobNotFound(ZImageError):
    """A job that was deleted, or never was."""


class StoreUnavailable(ZImageError):
    """The store of jobs cannot be read or written now; the same call works when the cause is gone."""


class WorkerStartFailed(ZImageError):
    """A worker ended before it was ready. The message is the worker's own if it sent one."""
