"""Parts of answers that all dialects share: errors, and the state of the server. Knows no routes."""

from typing import Literal

from pydantic import BaseModel

from server.jobs.job import Job
from server.jobs.service import ServiceStatus


def image_path(job: Job, index: int) -> str:
    """Return the path of an image, relative to the server's root."""
    return f"v1/images/{job.id}/{index}{job.format.suffix}"


class SizeLimits(BaseModel):
    """Smallest and largest sides of the images of one profile of the plans, in pixels."""

    min_width: int
    max_width: int
    min_height: int
    max_height: int


class ModelInfo(BaseModel):
    """Response of `GET /v1/model_info`, which the page and load generators read.

    Attributes:
        sizes: `size_limits` as text, WIDTHxHEIGHT..WIDTHxHEIGHT.
        size_multiple: pixels; every side is a multiple of it.
        default_guidance: guidance_scale of requests without one.
        max_images: of one task.
        image_input: true if requests may have an `init_image`.
        needs_key: true if requests must send an API key.
        history: tasks that `/v1/tasks` lists: those of everybody (shared), those of the key (key), or none, so that a
            browser must keep the ids of its tasks (browser).
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
    size_multiple: int
    max_images: int
    image_input: bool
    needs_key: bool
    history: Literal["shared", "browser", "key"]
    loras: list[str]
    about: str
    examples: list[str]


class Error(BaseModel):
    """An error. `param` is the name of the wrong field, `code` is for programs, `message` for people."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Response of a request that failed."""

    error: Error


class Health(BaseModel):
    """Response of `GET /health` and `GET /ready`. `detail` is the last failure of the worker, unless all is well."""

    status: ServiceStatus
    model: str
    precision: str
    flavor: str
    detail: str | None = None
