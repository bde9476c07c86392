"""Bodies of the task endpoints, compatible with existing deployments of Z-Image-Turbo. Knows no routes."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from engine.images.metadata import ImageMetadata
from engine.request import ImageFormat, ImageKind
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
    output_format: ImageKind = "png"
    previews: Annotated[
        int, Field(ge=0, le=100, description="of each image; ignored where the request waits for the images"), WHOLE
    ] = 0

    @property
    def image_count(self) -> int:
        """Number of images. Raises InvalidRequest if two fields contradict each other."""
        return agreed({"num_images": self.num_images, "n": self.n}) or 1

    def format(self) -> ImageFormat:
        """Return the file format of the images."""
        return ImageFormat(self.output_format)


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


class TaskSettings(BaseModel):
    """Settings of a task, beside its prompt. Null stands for the model's default. `seed` is that of the first image."""

    negative_prompt: str
    width: int | None
    height: int | None
    seed: int
    num_inference_steps: int | None
    guidance_scale: float | None
    lora: str | None
    lora_strength: float
    num_images: int
    output_format: ImageKind

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the settings of a job."""
        request = job.request
        return cls(
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            seed=request.seed,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            lora=request.lora,
            lora_strength=request.lora_strength,
            num_images=job.image_count,
            output_format=job.format.kind,
        )


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
    settings: TaskSettings
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
            settings=TaskSettings.of(job),
            result=TaskResult.of(job, all_metadata, base_url) if is_done and all_metadata else None,
            error=None if job.error is None else job.error.message,
            error_code=None if job.error is None else job.error.code,
        )


class TaskList(BaseModel):
    """Tasks, newest first. `has_more` is true if there are older ones."""

    tasks: list[Task]
    has_more: bool


class TaskEvent(BaseModel):
    """Event of a task. `image` is base64; `step` is the number of steps before a preview.

    A new stream with the `id` of the last event received, as `Last-Event-ID` or `last_event_id`, sends no image again.
    """

    type: Literal["progress", "preview", "image", "end"]
    id: str
    status: str | None = None
    progress: int | None = None
    queue_position: int | None = None
    eta: float | None = None
    index: int | None = None
    step: int | None = None
    seed: int | None = None
    image: str | None = None
    task: Task | None = None
