"""Requests of Xinference's client for images: OpenAI's bodies and forms, with further fields as JSON in `kwargs`.

Models are listed at OpenAI's endpoint. Errors of requests with `kwargs` have Xinference's `detail` too.
"""

import json
from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import model_validator

from engine.errors import InvalidRequest
from server.api import edits, openai
from server.api.access import Authenticator
from server.api.body import is_json
from server.api.dialects.routes import with_errors
from server.api.errors import ApiError
from server.api.image_input import read_body_with_images, read_form
from server.api.openai_schemas import ImagesRequest
from server.api.submit import Jobs, Owner
from server.jobs.service import JobService

FILES = {"images": "image", "mask_image": "mask"}  # its names of files in forms, and OpenAI's
has_kwargs = ContextVar("has_kwargs", default=False)  # of this request's body


class XinferenceRequest(ImagesRequest):
    """Body of `POST /v1/images/generations` as Xinference's client sends it, which has all of OpenAI's fields."""

    @model_validator(mode="before")
    @classmethod
    def _with_kwargs(cls, body: Any) -> Any:
        """Move the fields in `kwargs` to the top."""
        if not isinstance(body, dict) or body.get("kwargs") is None:
            return body
        fields = _of_kwargs(body["kwargs"])
        body = {name: value for name, value in body.items() if name != "kwargs" and value is not None}
        _refuse_twice(fields.keys() & body.keys())
        return body | fields


def _of_kwargs(text: Any) -> dict[str, Any]:
    """Return the fields in `kwargs`."""
    has_kwargs.set(True)
    try:
        fields = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequest("kwargs must be a JSON object, written as a string", "kwargs")
    return fields


def _refuse_twice(names: Collection[str]) -> None:
    if names:
        name = min(names)
        raise InvalidRequest(f"{name} is in kwargs and beside it; send only one of them", name)


def _error(error: ApiError) -> dict[str, Any]:
    return error.body() | ({"detail": str(error)} if has_kwargs.get() else {})


router = APIRouter(route_class=with_errors(_error), include_in_schema=False)


@router.get("/v1/cluster/auth")
async def needs_key(request: Request) -> dict[str, bool]:
    """Return whether the client must send an API key."""
    authenticator: Authenticator = request.app.state.authenticator
    return {"auth": authenticator.needs_key}


@router.post("/v1/images/generations")
async def generate_images(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Generate images as OpenAI's endpoint does."""
    return await openai.generate(request, jobs, owner, await read_body_with_images(request, owner, XinferenceRequest))


@router.post("/v1/images/variations")
@router.post("/v1/images/inpainting")
async def draw_anew(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Draw an image anew, or the part where the mask is white."""
    return await _edit(request, jobs, owner, alpha_is_mask=False)


@router.post("/v1/images/edits")
async def edit_image(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Draw an image anew, or the part that a mask or its own transparency selects."""
    return await _edit(request, jobs, owner, alpha_is_mask=True)


async def _edit(request: Request, jobs: JobService, owner: str | None, *, alpha_is_mask: bool) -> Response:
    if is_json(request):
        draw = edits.edit_image if alpha_is_mask else edits.vary_image
        return await draw(request, jobs, owner)
    form = await read_form(request, owner, ("image", "mask", *FILES))
    for theirs, ours in FILES.items():
        if theirs in form.files and ours in form.files:
            raise InvalidRequest(f"{theirs} is there beside {ours}; send only one of them", theirs)
    files = {FILES.get(name, name): data for name, data in form.files.items()}
    texts = {FILES.get(name, name): text for name, text in form.texts.items() if name != "kwargs"}
    if "kwargs" in form.texts:
        fields = _of_kwargs(form.texts["kwargs"])
        _refuse_twice(fields.keys() & texts.keys())
        texts |= {name: _as_text(value) for name, value in fields.items() if value is not None}
    return await edits.answer_form(
        request, jobs, owner, replace(form, texts=texts, files=files), alpha_is_mask=alpha_is_mask
    )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
