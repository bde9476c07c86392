"""Bodies of the task endpoints, compatible with existing deployments of Z-Image-Turbo. Knows no routes."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from engine.images.metadata import ImageMetadata
from server.api.fields import WHOLE, InitImageFields, agreed
from server.api.schemas import image_path
from server.jobs.follower import Progress
from server.jobs.job import Job, JobState

STATUS = {state: "pending" if state is JobState.QUEUED else state.value for state in JobState}
MAX_IMAGES = 4


class GenerateRequest(InitImageFields):
    """Body of requests for images. A field that is null counts as absent."""

    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="1 if absent"), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="another name of num_images"), WHOLE] | None = None
    previews: Annotated[
        int, Field(ge=0, le=100, description="of each image; ignored where the request waits for the images"), WHOLE
    ] = 0

    @property
    def image_count(self) -> int:
        """Number of images. Raises InvalidRequest if two fields contradict each other."""
        return agreed({"num_images": self.num_images, "n": self.n}) or 1


class Images(BaseModel):
    """Images as base64, and their seeds."""

    images: list[str]
    seeds: list[int]


class Submitted(BaseModel):
    """A task that was accepted."""

    task_id: str
    status: Literal["submitted"] = "submitted"


class TaskResult(BaseModel):
    """Images of a task. `paths` are URLs; `time` is in seconds since the first image was started."""

    paths: list[str]
    time: float
    metadata: list[ImageMetadata]

    @classmethod
    def of(cls, job: Job, all_metadata: list[ImageMetadata], base_url: str) -> Self:
        """Return the images of a job that is done. `base_url`: the server's root, as the client sees it."""
        assert job.started is not None and job.finished is not None
        paths = [base_url + image_path(job, index) for index in range(len(all_metadata))]
        return cls(paths=paths, time=round(max(job.finished - job.started, 0.0), 3), metadata=all_metadata)


class Task(BaseModel):
    """State of a task. `progress` is in percent, `eta` in seconds, `created` in Unix seconds."""

    task_id: str
    status: str
    progress: int
    queue_position: int
    eta: float | None
    created: float
    sequence: int
    prompt: str
    result: TaskResult | None = None
    error: str | None = None
    error_code: str | None = None

    @classmethod
    def of(cls, job: Job, progress: Progress, all_metadata: list[ImageMetadata], base_url: str) -> Self:
        """Return the state of a job. `base_url`: the server's root, as the client sees it."""
        is_done = job.state is JobState.DONE
        share = 1.0 if is_done else progress.done / progress.steps if progress.steps else 0.0
        return cls(
            task_id=job.id,
            status=STATUS[job.state],
            progress=int(100 * share),
            queue_position=progress.position,
            eta=None if job.state.is_final else round(progress.eta, 3),
            created=job.created,
            sequence=job.sequence,
            prompt=job.request.prompt,
            result=TaskResult.of(job, all_metadata, base_url) if is_done and all_metadata else None,
            error=None if job.error is None else job.error.message,
            error_code=None if job.error is None else job.error.code,
        )


class TaskList(BaseModel):
    """Tasks, newest first. `has_more` is true if there are older ones."""

    tasks: list[Task]
    has_more: bool


class TaskEvent(BaseModel):
    """Event of a task. `image` is base64; `step` is the number of steps before a preview."""

    type: Literal["progress", "preview", "image", "end"]
    status: str | None = None
    progress: int | None = None
    queue_position: int | None = None
    eta: float | None = None
    index: int | None = None
    step: int | None = None
    seed: int | None = None
    image: str | None = None
    task: Task | None = None
