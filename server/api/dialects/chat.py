"""`POST /v1/chat/completions` with an image as the answer, as vLLM-Omni serves it and its load tool calls it.

Only that: the last message of the user is the prompt, and there is no chat.
"""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from server.api.dialects.chat_schemas import ChatRequest
from server.api.image_input import image_input, read_body_with_images, take_upload
from server.api.openai_schemas import Usage
from server.api.served_model import Model
from server.api.submit import Jobs, Owner, Submission, answer_headers, encode_images, submit_request, wait_for_images
from server.jobs.job import Job, StoredImage

router = APIRouter(include_in_schema=False)


class ImageUrl(BaseModel):
    """An image as a data URL."""

    url: str


class ImagePart(BaseModel):
    """A part of a message."""

    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl


class Message(BaseModel):
    """The answer's message: its images."""

    role: Literal["assistant"] = "assistant"
    content: list[ImagePart]


class Choice(BaseModel):
    """The only choice of an answer."""

    index: int = 0
    message: Message
    finish_reason: Literal["stop"] = "stop"
    logprobs: None = None


class ChatUsage(BaseModel):
    """Tokens of the transformer: those of the prompt once, those of every image."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """Response of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


@router.post("/v1/chat/completions")
async def complete(request: Request, jobs: Jobs, owner: Owner, model: Model) -> Response:
    """Generate images of the user's last message, which may hold an image to start from."""
    body = await read_body_with_images(request, owner, ChatRequest)
    body, upload = await take_upload(
        body, image_input(request), image_param="messages" if body.has_image else "init_image"
    )
    submission = Submission(
        "chat",
        body,
        body.image(),
        body.num_outputs_per_prompt,
        is_awaited=True,
        timeout=body.timeout,
        names=body.names(),
        model=body.model,
        ignored=body.ignored(),
        upload=upload,
        priority=body.job_priority(),
        plan_id=body.plan_id,
    )
    job = await submit_request(request, jobs, owner, submission)
    ended, images = await wait_for_images(request, jobs, job)
    token_pixels = jobs.manifest.model.size_multiple
    content = await encode_images(images, partial(_completion, ended, images, model.name, token_pixels))
    return Response(content, media_type="application/json", headers=answer_headers(request, submission, ended, images))


def _completion(job: Job, images: Sequence[StoredImage], model: str, token_pixels: int) -> str:
    urls = (f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}" for image in images)
    usage = Usage.of(images, token_pixels)
    answer = ChatCompletion(
        id=f"chatcmpl-{job.id}",
        created=int(job.created),
        model=model,
        choices=[Choice(message=Message(content=[ImagePart(image_url=ImageUrl(url=url)) for url in urls]))],
        usage=ChatUsage(
            prompt_tokens=usage.input_tokens, completion_tokens=usage.output_tokens, total_tokens=usage.total_tokens
        ),
    )
    return answer.model_dump_json()
