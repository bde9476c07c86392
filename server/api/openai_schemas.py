"""Bodies of OpenAI's Images API.

Parameters that the model cannot serve are refused by name; those without an effect are accepted. Knows no routes.
"""

import base64
from collections.abc import Hashable, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from engine.request import (
    MAX_GUIDANCE,
    MAX_LORA,
    MAX_STEPS,
    ImageFormat,
    ImageRequest,
)
from engine.size import Size
from server.api.fields import MAX_PROMPT, Integer, Prompt, RequestBody, Seed, seed_of
from server.jobs.job import StoredImage

MAX_SIZE = 32  # characters of "WIDTHxHEIGHT"
MAX_PARTIAL = 3
SIZE = r"^(auto|[0-9]{1,6}([xX][0-9]{1,6})?)$"  # for the document; `Size.parse` gives better errors


def _only(*accepted: Hashable, reason: str) -> AfterValidator:
    """Accept some values and refuse others with a reason."""

    def check(value: Hashable) -> Hashable:
        if value not in accepted:
            raise PydanticCustomError("unsupported_value", "{reason}", {"reason": reason})
        return value

    return AfterValidator(check)


class ImagesRequest(RequestBody):
    """Body of `POST /v1/images/generations`. A field that is null counts as absent."""

    prompt: Prompt
    model: str | None = None
    n: Annotated[Integer, Field(ge=1, le=10)] = 1
    size: Annotated[
        str,
        Field(max_length=MAX_SIZE, description='"auto" or "WIDTHxHEIGHT"', json_schema_extra={"pattern": SIZE}),
    ] = "auto"
    seed: Seed | None = None
    num_inference_steps: Annotated[Integer, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[
        float, Field(ge=0, le=MAX_GUIDANCE, description="guidance as in diffusers; 0 for none")
    ] = 0.0
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT, description="needs a guidance_scale above 0")] = ""
    lora: (
        Annotated[str, Field(max_length=MAX_LORA, description="name of a LoRA, from loras in /v1/model_info")] | None
    ) = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[Integer, Field(ge=0, le=100)] = 100
    background: Annotated[
        str,
        _only("auto", "opaque", reason="images are opaque; use auto or opaque"),
        Field(json_schema_extra={"enum": ["auto", "opaque"]}),
    ] = "auto"
    stream: bool = False
    partial_images: Annotated[Integer, Field(ge=0, le=MAX_PARTIAL)] = 0
    timeout: (
        Annotated[float, Field(gt=0, le=86400, description="seconds until the images are no longer wanted")] | None
    ) = None
    # these have no effect
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    style: Literal["vivid", "natural"] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def image(self) -> ImageRequest:
        """Return the request for the first image; the seeds of the others follow. Without a seed, pick one.

        Raises:
            InvalidRequest: size is not WIDTHxHEIGHT.
        """
        width, height = (None, None) if self.size == "auto" else Size.parse(self.size)
        return ImageRequest(
            self.prompt,
            width,
            height,
            seed_of(self.seed),
            self.num_inference_steps,
            self.negative_prompt,
            self.guidance_scale,
            self.lora,
        )

    def format(self) -> ImageFormat:
        """Return the file format of the images.

        Raises:
            InvalidRequest: the format has no compression to set.
        """
        return ImageFormat(self.output_format, self.output_compression)


class Image(BaseModel):
    """One image. `revised_prompt` is the part of the prompt that was used, if the prompt was too long."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    revised_prompt: str | None = None

    @classmethod
    def of(cls, image: StoredImage, url: str | None) -> Self:
        """Return the image as base64, or its URL."""
        data = None if url else base64.b64encode(image.data).decode()
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
    """Response of `POST /v1/images/generations`."""

    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    quality: str
    size: str
    usage: Usage


class StreamedImage(BaseModel):
    """Event of a stream: an image, or a preview of one, which has a `partial_image_index`."""

    type: Literal["image_generation.partial_image", "image_generation.completed"]
    b64_json: str
    created_at: int
    size: str
    quality: str
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    partial_image_index: int | None = None
    index: int  # of the image, 0 to n - 1
    seed: int | None = None
    revised_prompt: str | None = None
    usage: Usage | None = None


class ModelCard(BaseModel):
    """Response of `GET /v1/models/{id}`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "zimage-trt"


class ModelList(BaseModel):
    """Response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
