"""Jobs and images for a store, and a clock that tests set."""

import random

import msgspec

from engine.images.metadata import ImageMetadata
from engine.init_image import InitImage
from engine.request import ImageRequest
from engine.size import Size
from engine.stages import StageTimes
from server.jobs.job import ImageFormat, Job, JobError, StoredImage, new_id
from server.jobs.storage.fleet.worker_info import WorkerInfo
from server.jobs.storage.rows import ROW_BYTES
from server.jobs.storage.store import JobStore

METADATA = ImageMetadata(
    7, 640, 512, 8, 8, 0.0, "plan", "fp16", "onnx", "nano", "a cut prompt", 12, StageTimes(denoiser=0.25)
)
ERROR = JobError("device_lost", "the GPU fell off the bus")
MB = 1 << 20


def job(images: int = 1, **fields: object) -> Job:
    usual = {
        "request": ImageRequest("a red circle"),
        "image_count": images,
        "format": ImageFormat(),
        "api": "images",
        "durable": True,
        "fingerprint": "f",
        "created": 1.5,
    }
    return Job(**{"id": new_id()} | usual | fields)


def image(index: int = 0, data: bytes = b"data") -> StoredImage:
    return StoredImage(index, "image/png", data, METADATA)


def init_image(size: Size = Size(64, 64), *, mask: bool = False, seed: int = 0) -> InitImage:  # noqa: B008
    """Return an image of noise, with a mask of its left half."""
    pixels = random.Random(seed).randbytes(3 * size.area)
    half = bytes([255] * (size.width // 2) + [0] * (size.width - size.width // 2)) * size.height
    return InitImage(size, pixels, half if mask else None)


def pages(store: JobStore, limit: int, owner: str | None = None) -> list[Job]:
    """Read the whole history, page by page."""
    found: list[Job] = []
    while page := store.history(limit, found[-1].sequence if found else None, owner).jobs:
        assert len(page) <= limit and page[0] not in found
        found += page
    return found


def stored_size(job: Job) -> int:
    """Return the bytes that an ended job counts for in the store, without its images."""
    return len(msgspec.json.encode(job.request)) + ROW_BYTES


class Clock:
    """Unix seconds that pass when a test adds to them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def generated(store: JobStore, data: bytes = b"data", **fields: object) -> str:
    """Add a finished job of one image and return its id."""
    id = store.add(job(**fields)).id
    assert store.start(id) and store.add_image(id, image(data=data)) and store.finish(id)
    return id


def host(name: str = "host", **fields: object) -> WorkerInfo:
    """Return a worker host with plans of z-image-nano."""
    usual = {"id": name, "host": "machine", "version": "1", "model": "nano", "plan_id": "plan", "loras": ("ink",)}
    return WorkerInfo(**usual | fields)
