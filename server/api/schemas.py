"""Parts of answers that all dialects share: errors, and the state of the server. Knows no routes."""

from typing import Literal, Self

from pydantic import BaseModel

from server.jobs.devices.device_status import DeviceStatus
from server.jobs.job import Job
from server.jobs.service import JobService, ServiceStatus
from server.worker.messages import BatchingState


def image_path(job: Job, index: int) -> str:
    """Return the path of an image, relative to the server's root."""
    return f"v1/images/{job.id}/{index}{job.format.suffix}"


class SizeLimits(BaseModel):
    """Smallest and largest sides of the images of one profile of the plans, in pixels."""

    min_width: int
    max_width: int
    min_height: int
    max_height: int


class SizeBatching(BaseModel):
    """The batch that gains most at a size.

    Attributes:
        size: WIDTHxHEIGHT in pixels; smaller images batch like the next larger size.
        best_batch: images in a forward pass; 1 if sharing gains nothing.
        speedup: images per second, as a multiple of those one at a time.
    """

    size: str
    best_batch: int
    speedup: float


class DeviceBatching(BaseModel):
    """Images that share forward passes on a device.

    Attributes:
        device: its name.
        host: machine that it is in; null for this server's own.
        state: "measured"; "waiting" until that can be done, when there is nothing to generate; "measuring" now;
            "failed"; or "none", as with `--batching off` or before the worker is ready.
        machine: GPU or processor whose times are used.
        measured: Unix time of the measurement; null before it.
    """

    device: str
    host: str | None
    state: BatchingState
    machine: str | None
    measured: float | None
    sizes: list[SizeBatching]

    @classmethod
    def of(cls, device: DeviceStatus) -> Self:
        """Return the batching of a device."""
        batching = device.batching
        sizes = [
            SizeBatching(size=f"{each.width}x{each.height}", best_batch=each.best_batch, speedup=round(each.speedup, 3))
            for each in batching.sizes
        ]
        return cls(
            device=device.name,
            host=device.host,
            state=batching.state,
            machine=batching.machine or None,
            measured=batching.measured or None,
            sizes=sizes,
        )


class ModelInfo(BaseModel):
    """Response of `GET /v1/model_info`, which the page and load generators read.

    Attributes:
        sizes: `size_limits` as text, WIDTHxHEIGHT..WIDTHxHEIGHT.
        recommended_sizes: sizes that the model draws well, by its authors' guide; empty without one.
        size_multiple: pixels; every side is a multiple of it.
        default_guidance: guidance_scale of requests without one.
        max_images: of one task.
        image_input: true if requests may have an `init_image`.
        needs_key: true if requests must send an API key.
        history: tasks that `/v1/tasks` lists: those of everybody (shared), those of the key (key), or none, so that a
            browser must keep the ids of its tasks (browser).
        batching: images that share forward passes, by device, of all machines.
    """

    model_path: str
    precision: str
    flavor: str
    plan_id: str
    num_inference_steps: int
    default_guidance: float
    default_size: str
    sizes: list[str]
    size_limits: list[SizeLimits]
    recommended_sizes: list[str]
    size_multiple: int
    max_images: int
    image_input: bool
    needs_key: bool
    history: Literal["shared", "browser", "key"]
    loras: list[str]
    about: str
    examples: list[str]
    batching: list[DeviceBatching]


class Error(BaseModel):
    """An error. `param` is the name of the wrong field, `code` is for programs, `message` for people."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Response of a request that failed."""

    error: Error


class DeviceHealth(BaseModel):
    """A device that generates images.

    Attributes:
        starts: worker processes that were started on it.
        jobs: unfinished jobs that it has.
        last_failure: why its last worker ended.
        host: machine that it is in; null for this server's own.
    """

    name: str
    is_ready: bool
    starts: int
    jobs: int
    last_failure: str | None
    host: str | None


class WorkerHealth(BaseModel):
    """A worker host of the fleet.

    Attributes:
        host: name of its machine.
        version: of zimage-trt.
        window: images that its devices hold at once.
    """

    id: str
    host: str
    version: str
    model: str
    plan_id: str
    loras: list[str]
    window: int
    is_draining: bool
    seconds_since_seen: float


class Health(BaseModel):
    """Response of `GET /health` and `GET /ready`.

    Attributes:
        detail: the last failure of the worker, or of the database of a fleet, unless all is well.
        devices: that generate images, of all machines.
        workers: worker hosts; empty for a server with devices of its own.
    """

    status: ServiceStatus
    model: str
    precision: str
    flavor: str
    detail: str | None = None
    devices: list[DeviceHealth]
    workers: list[WorkerHealth]

    @classmethod
    def of(cls, jobs: JobService) -> Self:
        """Return the state of a server."""
        manifest, status = jobs.manifest, jobs.status
        return cls(
            status=status,
            model=manifest.model.name,
            precision=manifest.precision,
            flavor=manifest.target.flavor,
            detail=None if status == "ok" else jobs.last_failure,
            devices=[DeviceHealth.model_validate(device, from_attributes=True) for device in jobs.devices()],
            workers=[WorkerHealth.model_validate(worker, from_attributes=True) for worker in jobs.workers()],
        )
