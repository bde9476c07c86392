"""The HTTP application: OpenAI's images and models endpoints, and a health probe.

Knows routes; validation is in `schemas`, waiting for pictures in `drawing`, the shape of errors in `errors`.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from engine.errors import DeviceError
from engine.pipeline import Picture
from server import errors
from server.drawing import DrawingThread, PictureSource, while_connected
from server.request_id import RequestIdMiddleware
from server.schemas import Health, ImagesRequest, ImagesResponse, ModelCard, ModelList

MAX_BODY = 1 << 20  # bytes

router = APIRouter()


def create_app(pipeline: PictureSource) -> FastAPI:
    """The application that serves `pipeline`; its lifespan ends the drawing thread."""
    drawing = DrawingThread(pipeline)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await drawing.close()

    app = FastAPI(title="zimage-trt", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.drawing = drawing
    app.state.started = int(time.time())
    app.include_router(router)
    app.add_middleware(RequestIdMiddleware)
    errors.install(app)
    return app


async def _drawing(request: Request) -> DrawingThread:
    drawing: DrawingThread = request.app.state.drawing
    return drawing


async def _card(request: Request) -> ModelCard:
    state = request.app.state
    return ModelCard(id=state.drawing.pipeline.manifest.model.name, created=state.started)


Drawing = Annotated[DrawingThread, Depends(_drawing)]
Card = Annotated[ModelCard, Depends(_card)]


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ImagesRequest.model_json_schema()}},
        }
    },
)
async def generate_images(request: Request, drawing: Drawing, card: Card) -> Response:
    """Draws `n` pictures; everything is checked before the first."""
    wanted = await _read(request)
    if wanted.model not in (None, card.id):
        raise errors.model_not_found(wanted.model)
    requests = wanted.pictures()
    await drawing.check(requests[0])  # the others differ only in their seeds
    pictures = await while_connected(request, drawing.draw(requests))
    body = await run_in_threadpool(_encode, pictures, drawing.pipeline.manifest.model.size_multiple)
    return Response(body, media_type="application/json")


@router.get("/v1/models")
async def list_models(card: Card) -> ModelList:
    return ModelList(data=[card])


@router.get("/v1/models/{model:path}")  # names may hold a slash
async def retrieve_model(model: str, card: Card) -> ModelCard:
    if model != card.id:
        raise errors.model_not_found(model)
    return card


@router.get("/health")
async def health(drawing: Drawing) -> Health:
    if drawing.lost is not None:
        raise DeviceError(drawing.lost, sticky=True)
    manifest = drawing.pipeline.manifest
    return Health(model=manifest.model.name, precision=manifest.precision, flavor=manifest.target.flavor)


async def _read(request: Request) -> ImagesRequest:
    """The body: JSON of a bounded length, declared as such, which a foreign web page cannot send unasked."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise errors.ApiError(415, "The content type must be application/json.", code="unsupported_media_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise errors.ApiError(413, f"The body is larger than {MAX_BODY} bytes.", code="request_too_large")
    try:
        return ImagesRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise errors.invalid_body(error) from error


def _encode(pictures: list[Picture], token_pixels: int) -> str:
    return ImagesResponse.of(pictures, token_pixels).model_dump_json(exclude_none=True)
