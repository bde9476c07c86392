"""Jobs and images to put into a store, and a clock that stands still."""

from engine.images.metadata import ImageMetadata
from engine.request import ImageRequest
from engine.stages import StageTimes
from server.jobs.job import ImageFormat, Job, JobError, StoredImage, new_id
from server.jobs.store import JobStore

METADATA = ImageMetadata(
    7, 640, 512, 8, 8, 0.0, "plan", "fp16", "onnx", "nano", "a cut prompt", 12, StageTimes(denoiser=0.25)
)
ERROR = JobError("device_lost", "the GPU fell off the bus")
MB = 1 << 20


def job(images: int = 1, **fields: object) -> Job:
    usual = {"format": ImageFormat(), "api": "images", "durable": True, "fingerprint": "f", "created": 1.5}
    requests = tuple(ImageRequest("a red circle", seed=seed) for seed in range(images))
    return Job(**{"id": new_id(), "requests": requests} | usual | fields)


def image(index: int = 0, data: bytes = b"data") -> StoredImage:
    return StoredImage(index, "image/png", data, METADATA)


class Clock:
    """Unix seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def generated(store: JobStore, data: bytes = b"data") -> str:
    """The id of a finished job of one image."""
    id = store.add(job()).id
    assert store.begin(id) and store.add_image(id, image(data=data)) and store.finish(id)
    return id
