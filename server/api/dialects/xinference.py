"""Requests of Xinference's client for images: OpenAI's body, with further fields as JSON in `kwargs`.

Models are listed at OpenAI's endpoint. Errors of requests with `kwargs` have Xinference's `detail` too.
"""

import json
from contextvars import ContextVar
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import model_validator

from engine.errors import InvalidRequest
from server.api import openai
from server.api.access import Authenticator
from server.api.dialects.routes import with_errors
from server.api.errors import ApiError
from server.api.image_input import read_body_with_images
from server.api.openai_schemas import ImagesRequest
from server.api.submit import Jobs, Owner

has_kwargs = ContextVar("has_kwargs", default=False)  # of this request's body


class XinferenceRequest(ImagesRequest):
    """Body of `POST /v1/images/generations` as Xinference's client sends it, which has all of OpenAI's fields."""

    @model_validator(mode="before")
    @classmethod
    def _with_kwargs(cls, body: Any) -> Any:
        """Move the fields in `kwargs` to the top."""
        if not isinstance(body, dict) or body.get("kwargs") is None:
            return body
        has_kwargs.set(True)
        try:
            fields = json.loads(body["kwargs"])
        except (TypeError, ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise InvalidRequest("kwargs must be a JSON object, written as a string", "kwargs")
        body = {name: value for name, value in body.items() if name != "kwargs" and value is not None}
        if twice := fields.keys() & body.keys():
            name = min(twice)
            raise InvalidRequest(f"{name} is in kwargs and beside it; send only one of them", name)
        return body | fields


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
