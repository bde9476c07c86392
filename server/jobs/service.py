"""Jobs as the HTTP layer uses them: the interface, whichever way jobs take to a worker.

Knows jobs; neither HTTP nor workers. A job is in the store before its submission is answered, and every accepted job
ends once: done, failed with an error, or cancelled.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Literal

from engine.images.metadata import ImageMetadata
from engine.plan.manifest import Manifest
from server.jobs.admission.rate import Rate
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.follower import JobPreview, Progress
from server.jobs.job import Job, StoredImage
from server.jobs.metrics import Metrics
from server.jobs.storage.fleet.worker_info import WorkerInfo
from server.jobs.storage.history import HistoryPage
from server.worker.packed_image import PackedImage

ServiceStatus = Literal["ok", "starting", "draining", "failing", "store_unavailable"]  # the last one: of a fleet

JobEvent = Progress | JobPreview | StoredImage | Job  # the last one is the ended job


class JobService(ABC):
    """All jobs that a server answers for. Used from one event loop.

    `server.jobs.embedded.EmbeddedJobs` gives them to the workers of this machine.

    Attributes:
        manifest: of the plans that generate the images.
        is_leaving: True once the server tells load balancers to move on; it still accepts jobs.
    """

    manifest: Manifest
    metrics: Metrics
    is_leaving: bool

    @property
    @abstractmethod
    def status(self) -> ServiceStatus: ...

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """True if jobs can be accepted and begun now."""

    @property
    @abstractmethod
    def last_failure(self) -> str | None:
        """Reason for the last failure of what the status is about."""

    @property
    @abstractmethod
    def loras(self) -> tuple[str, ...]:
        """Names of LoRAs that requests may ask for."""

    @abstractmethod
    def devices(self) -> list[DeviceStatus]:
        """Return the devices that generate images, with their workers."""

    def workers(self) -> list[WorkerInfo]:
        """Return the worker hosts of the fleet; none if the devices are this server's own."""
        return []

    @abstractmethod
    def plan_ids(self) -> list[str]:
        """Return the ids of the plans that jobs may name."""

    @abstractmethod
    async def start(self) -> None:
        """Begin to take jobs, and resume what an earlier server has left unfinished."""

    @abstractmethod
    def leave(self) -> None:
        """Report that the server stops soon, and go on as before."""

    @abstractmethod
    def drain(self) -> None:
        """Leave, and count the grace period from now. Jobs of requests that are under way are still accepted."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Wait until no client waits for a job, but no longer than `grace` seconds after `drain`."""

    @abstractmethod
    def fail_connected(self, reason: str) -> None:
        """Fail the jobs whose clients wait, since no worker starts."""

    @abstractmethod
    async def hit(self, client: str, rate: Rate) -> float:
        """Count a request of a client and return 0; or return the seconds until its rate allows the next one.

        Raises:
            StoreUnavailable: several servers count together, and their store does not answer.
        """

    @abstractmethod
    async def submit(self, job: Job, init_image: PackedImage | None = None) -> Job:
        """Store and queue a job, or return the one that the same idempotency key has made.

        Args:
            init_image: the image that the request's `edit` describes.

        Raises:
            JobRefused: the queue is full, the deadline cannot be met, or there is no worker.
            IdempotencyKeyReused: the key was used for another request.
            StoreUnavailable: the job cannot be stored now.
        """

    @abstractmethod
    async def get(self, job_id: str) -> Job | None: ...

    @abstractmethod
    async def image(self, job_id: str, index: int) -> StoredImage | None: ...

    @abstractmethod
    async def metadata(self, job_id: str) -> list[ImageMetadata]:
        """Return the metadata of a job's images, without reading the images."""

    @abstractmethod
    async def history(self, limit: int, before: int | None, owner: str | None) -> HistoryPage:
        """Return a page of an owner's jobs, newest first; see `JobStore.history`."""

    @abstractmethod
    async def find(self, ids: Sequence[str]) -> HistoryPage:
        """Return those of some jobs that exist, newest first; see `JobStore.find`."""

    @abstractmethod
    async def delete(self, job_id: str) -> bool:
        """Delete a job that has ended, with its images. False: it has not ended, or is unknown."""

    @abstractmethod
    async def cancel(self, job_id: str) -> bool:
        """End a job now; its images stop at their next step. False: it had ended, or is unknown.

        The job is cancelled even if the caller is cancelled meanwhile, as it is when its client disconnects.
        """

    @abstractmethod
    async def unfinished(self, client: str, api: str) -> list[Job]:
        """Return a client's unfinished jobs of one API, in their order."""

    @abstractmethod
    async def progress(self, job: Job) -> Progress:
        """Return the place of a job in the queue, its steps and the estimated time until its end."""

    @abstractmethod
    async def wait(self, job: Job) -> tuple[Job, list[StoredImage]]:
        """Return the job and its images when it has ended.

        Raises:
            JobNotFound: it was deleted.
        """

    @abstractmethod
    def follow(self, job: Job, received: Collection[int] = ()) -> AsyncGenerator[JobEvent]:
        """Yield progress and images so far, then each event. The last is the ended job, unless it was deleted.

        Args:
            received: indices of images that the follower has already, and does not get.

        Raises:
            TooManyFollowers: too many clients follow the job already.
        """
