"""Parts of answers that all dialects share: errors, and the state of the server. Knows no routes."""

from typing import Literal

from pydantic import BaseModel

from server.jobs.job import Job
from server.jobs.service import ServiceStatus


def image_path(job: Job, index: int) -> str:
    """Return the path of an image, relative to the server's root."""
    return f"v1/images/{job.id}/{index}{job.format.suffix}"


class ModelInfo(BaseModel):
    """Response of `GET /v1/model_info`, which load generators read."""

    model_path: str
    precision: str
    flavor: str
    plan_id: str
    num_inference_steps: int
    default_guidance: float
    default_size: str
    sizes: list[str]
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
