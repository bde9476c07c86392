"""Descriptions of worker hosts and their jobs, as hosts and the database exchange them. Knows no rows or processes."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.jobs.devices.device_status import DeviceStatus
from server.jobs.job import Job, JobState, StoredImage
from server.worker.packed_image import PackedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeAverage:
    """Measured seconds of images of one size; see `Estimates`."""

    width: int
    height: int
    per_pass: float
    fixed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker host, as its heartbeats describe it.

    Attributes:
        id: unique for each start of a host.
        host: name of its machine.
        version: of zimage-trt.
        model: name of its plans' model.
        plan_id: of its plans.
        loras: names that it can apply.
        window: images that its devices hold at once.
        image_input: True if it can start from an image.
        averages: measured seconds by size.
        is_draining: True if it takes no more jobs. Set by the store.
        seconds_since_seen: since its last heartbeat. Set by the store.
    """

    id: str
    host: str
    version: str
    model: str
    plan_id: str
    loras: tuple[str, ...] = ()
    window: int = 1
    image_input: bool = False
    devices: tuple[DeviceStatus, ...] = ()
    averages: tuple[SizeAverage, ...] = ()
    is_draining: bool = False
    seconds_since_seen: float = 0.0


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """Answer to a heartbeat.

    Attributes:
        ended: jobs of the heartbeat that the host no longer holds: they ended elsewhere, or were given to another host.
        is_draining: True if the host shall take no more jobs, and finish those that it has.
    """

    ended: list[str]
    is_draining: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that a host holds from now on.

    Attributes:
        job: still queued; `JobStore.start` sets it to running. A job with attempts may have killed a worker.
        images: that another host finished, by index; if they are all there, the job only needs its end.
        init_image: the packed image that it begins with; None if it begins with none, or that image is damaged.
        seconds_left: until its deadline; None if it has none.
    """

    job: Job
    images: Mapping[int, StoredImage]
    init_image: PackedImage | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Expired:
    """Changes that the janitor has made.

    Attributes:
        requeued: jobs whose hosts were lost; they need new tickets.
        ended: jobs that failed, by their deadline or their attempts, or were complete when their host was lost.
        workers: ids of hosts that are forgotten.
    """

    requeued: list[Job]
    ended: list[Job]
    workers: list[str]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """State of a job, for those that watch it.

    Attributes:
        images: indices of the finished images, in order.
    """

    state: JobState
    steps_done: int
    images: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QueueLength:
    """Unfinished jobs of one priority that need the same of a host, for metrics and autoscaling.

    Attributes:
        model, lora, plan_id: that they ask for; None for any model, no LoRA and any plans.
        image_input: True if they begin with an image.
        waiting: that no host holds.
        held: by a host.
        oldest: seconds since the acceptance of the oldest waiting one; 0 if none waits.
        cost: of the waiting ones together; see `Job.cost`.
    """

    model: str | None
    priority: str
    lora: str | None
    waiting: int
    held: int
    oldest: float
    cost: float
    plan_id: str | None = None
    image_input: bool = False
