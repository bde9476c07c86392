"""OpenAI's endpoints for images that begin with an image: edits and variations. Knows forms and JSON; not pixels."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from server.api import errors, openai, openapi
from server.api.body import is_json
from server.api.edit_schemas import EditRequest
from server.api.image_input import image_input, read_body_with_images, read_form, take_upload
from server.api.multipart import Form
from server.api.openai_schemas import ImagesResponse, StreamedImage
from server.api.submit import Jobs, Owner
from server.jobs.service import JobService

NULL = "null"  # which browsers make of it in forms
PROMPTS = ("prompt", "negative_prompt")  # which may be any text
DOCUMENTED: dict[str, Any] = {
    "response_model": ImagesResponse,
    "openapi_extra": openapi.request_body(EditRequest, files=("image", "mask")),
    "responses": openapi.generation_responses(StreamedImage),
}

router = APIRouter()


@router.post("/v1/images/edits", **DOCUMENTED)
async def edit_image(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Draw an image anew, or the part that a mask or its own transparency selects; with `stream`, send events."""
    return await _answer(request, jobs, owner, alpha_is_mask=True)


@router.post("/v1/images/variations", **DOCUMENTED)
async def vary_image(request: Request, jobs: Jobs, owner: Owner) -> Response:
    """Draw an image anew; with `stream`, send events."""
    return await _answer(request, jobs, owner, alpha_is_mask=False)


async def _answer(request: Request, jobs: JobService, owner: str | None, *, alpha_is_mask: bool) -> Response:
    images, form = image_input(request), Form()
    images.require()  # before anything is read
    if is_json(request):
        body = await read_body_with_images(request, owner, EditRequest)
    else:
        form = await read_form(request, owner)
        body = _body(form)
    return await _draw(request, jobs, owner, body, form, alpha_is_mask=alpha_is_mask)


async def answer_form(
    request: Request, jobs: JobService, owner: str | None, form: Form, *, alpha_is_mask: bool = False
) -> Response:
    """Answer a form with an image that was read elsewhere, in OpenAI's names."""
    return await _draw(request, jobs, owner, _body(form), form, alpha_is_mask=alpha_is_mask)


async def _draw(
    request: Request, jobs: JobService, owner: str | None, body: EditRequest, form: Form, *, alpha_is_mask: bool
) -> Response:
    images = image_input(request)
    body, upload = await take_upload(body, images, form.files, alpha_is_mask=alpha_is_mask, image_param="image")
    if upload is None:
        raise errors.missing_parameter("image")
    return await openai.answer(request, jobs, owner, body, upload, "image_edit", form.unused)


def _body(form: Form) -> EditRequest:
    """Return the texts of a form as the body that they stand for: "8" is a number there, and "null" is absent.

    Raises:
        ApiError: 400, one of them is invalid or unknown.
    """
    texts = {name: text for name, text in form.texts.items() if text != NULL or name in PROMPTS}
    try:
        return EditRequest.model_validate_strings(texts, strict=False)
    except ValidationError as error:
        raise errors.invalid_body(error) from error
