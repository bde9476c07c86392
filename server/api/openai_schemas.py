"""Bodies of OpenAI's Images API. Knows no routes."""

import base64
from collections.abc import Hashable, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from engine.request import ImageFormat
from server.api.fields import WHOLE, InitImageFields
from server.jobs.job import StoredImage

MAX_PARTIAL = 3
EventType = Literal[
    "image_generation.partial_image", "image_generation.completed", "image_edit.partial_image", "image_edit.completed"
]
LOSSLESS = 100  # the only compression of PNG


def _only(*accepted: Hashable, reason: str) -> AfterValidator:
    """Accept some values and refuse others with a reason."""

    def check(value: Hashable) -> Hashable:
        if value not in accepted:
            raise PydanticCustomError("unsupported_value", "{reason}", {"reason": reason})
        return value

    return AfterValidator(check)


class ImagesRequest(InitImageFields):
    """Body of `POST /v1/images/generations`. A field that is null counts as absent."""

    n: Annotated[int, Field(ge=1, le=10), WHOLE] = 1
    response_format: Annotated[Literal["b64_json", "url"], Field(description="both if absent")] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100, description="ignored for PNG"), WHOLE] = 100
    background: Annotated[
        str,
        _only("auto", "opaque", reason="images are opaque; use auto or opaque"),
        Field(json_schema_extra={"enum": ["auto", "opaque"]}),
    ] = "auto"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL, description="ignored without stream"), WHOLE] = 0
    generator_device: Annotated[
        str,
        _only("cpu", reason="seeds stand for the noise of torch's CPU generator; use cpu"),
        Field(description="where the noise comes from", json_schema_extra={"enum": ["cpu"]}),
    ] = "cpu"

    def ignored(self) -> tuple[str, ...]:
        found = list(super().ignored())
        if self.output_format == "png" and self.output_compression != LOSSLESS:
            found.append("output_compression")
        if self.partial_images and not self.stream:
            found.append("partial_images")
        return tuple(found)

    def format(self) -> ImageFormat:
        """Return the file format of the images."""
        return ImageFormat(self.output_format, LOSSLESS if self.output_format == "png" else self.output_compression)


class Image(BaseModel):
    """One image. `revised_prompt` is the part of the prompt that was used, if the prompt was too long."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    revised_prompt: str | None = None

    @classmethod
    def of(cls, image: StoredImage, url: str | None, *, is_embedded: bool) -> Self:
        """Return the image with its URL, unless it is None, and as base64 if it `is_embedded`."""
        data = base64.b64encode(image.data).decode() if is_embedded else None
        return cls(b64_json=data, url=url, seed=image.metadata.seed, revised_prompt=image.metadata.revised_prompt)


class InputTokensDetails(BaseModel):
    """Tokens of the prompt by kind."""

    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """Tokens of the transformer: those of the prompt once, those of every image."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, images: Sequence[StoredImage], token_pixels: int) -> Self:
        """Return the usage of images of one size and prompt.

        Args:
            token_pixels: edge of the square of one image token, in pixels.
        """
        one = images[0].metadata
        image = len(images) * (one.height // token_pixels) * (one.width // token_pixels)
        return cls(
            input_tokens=one.text_tokens,
            input_tokens_details=InputTokensDetails(text_tokens=one.text_tokens),
            output_tokens=image,
            total_tokens=one.text_tokens + image,
        )


class ImagesResponse(BaseModel):
    """Response of OpenAI's endpoints for images."""

    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    usage: Usage


class StreamedImage(BaseModel):
    """Event of a stream: an image, or a preview of one, which has a `partial_image_index`."""

    type: EventType
    b64_json: str
    created_at: int
    size: str
    quality: Literal["auto"] = "auto"  # required by OpenAI's clients; there is only one
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    partial_image_index: int | None = None
    index: int  # of the image, 0 to n - 1
    seed: int | None = None
    revised_prompt: str | None = None
    usage: Usage | None = None


class ModelCard(BaseModel):
    """Response of `GET /v1/models/{id}`. `model_type` is Xinference's: its client asks which calls a model takes."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "zimage-trt"
    model_type: Literal["image"] = "image"


class ModelList(BaseModel):
    """Response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
