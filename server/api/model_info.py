"""Properties of the served plans and settings: `GET /v1/model_info`. Knows no jobs."""

from fastapi import APIRouter, Request

from server.api.access import Authenticator
from server.api.image_input import image_input
from server.api.schemas import DeviceBatching, ModelInfo, SizeLimits
from server.api.served_model import Model
from server.api.submit import Jobs
from server.api.task_schemas import MAX_IMAGES

router = APIRouter()


@router.get("/v1/model_info")
async def model_info(request: Request, jobs: Jobs, model: Model) -> ModelInfo:
    """Return the properties of the served plans."""
    manifest, authenticator = jobs.manifest, request.app.state.authenticator
    assert isinstance(authenticator, Authenticator)
    limits = [SizeLimits(**each._asdict()) for each in manifest.size_limits.ranges]
    return ModelInfo(
        model_path=manifest.model.name,
        precision=manifest.precision,
        flavor=manifest.target.flavor,
        plan_id=manifest.plan_id,
        num_inference_steps=manifest.model.default_steps,
        default_size=str(manifest.default_size),
        sizes=[f"{each.min_width}x{each.min_height}..{each.max_width}x{each.max_height}" for each in limits],
        size_limits=limits,
        recommended_sizes=list(model.guide.sizes),
        size_multiple=manifest.model.size_multiple,
        default_guidance=manifest.model.default_guidance,
        max_images=MAX_IMAGES,
        image_input=image_input(request).is_available,
        needs_key=authenticator.needs_key,
        history=authenticator.history,
        loras=list(jobs.loras),
        about=model.guide.about,
        examples=list(model.guide.examples),
        batching=[DeviceBatching.of(device) for device in jobs.devices()],
    )
