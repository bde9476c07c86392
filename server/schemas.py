"""The bodies of OpenAI's Images API as this server takes and gives them.

What the model cannot do is refused by name; what changes nothing is accepted. Knows no routes and no threads.
"""

import base64
import time
from collections.abc import Hashable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from engine.pipeline import Picture
from engine.png import encode_png
from engine.request import MAX_SEED, PictureRequest, parse_size, random_seed

MAX_PROMPT = 32_000  # characters, the limit that OpenAI documents; the model itself reads far less
MAX_SIZE = 32  # characters of "WIDTHxHEIGHT"


def _only(*accepted: Hashable, reason: str) -> AfterValidator:
    """Refuses all other values by name."""

    def check(value: Hashable) -> Hashable:
        if value not in accepted:
            raise PydanticCustomError("unsupported_value", "{reason}", {"reason": reason})
        return value

    return AfterValidator(check)


class ImagesRequest(BaseModel):
    """The body of `POST /v1/images/generations`; null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Annotated[str, Field(max_length=MAX_SIZE, description='"auto" or "WIDTHxHEIGHT"')] = "auto"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: int | None = None
    response_format: Annotated[str, _only("b64_json", reason="only b64_json is served")] = "b64_json"
    output_format: Annotated[str, _only("png", reason="only png is served")] = "png"
    output_compression: Annotated[int, _only(100, reason="png is lossless; only 100 is served")] = 100
    background: Annotated[str, _only("auto", "opaque", reason="pictures are opaque; use auto or opaque")] = "auto"
    stream: Annotated[bool, _only(False, reason="streaming is not served yet")] = False
    partial_images: Annotated[int, _only(0, reason="partial images need streaming, which is not served yet")] = 0
    guidance_scale: Annotated[float, _only(0, 1, reason="the model is distilled to draw without guidance; use 0")] = 0
    negative_prompt: Annotated[str, _only("", reason="without guidance a negative prompt has no effect")] = ""
    # these change nothing here
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    style: Literal["vivid", "natural"] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None or key not in cls.model_fields}

    def pictures(self) -> list[PictureRequest]:
        """One request per picture, with the seeds seed, seed + 1, ... (after the last comes 0).

        Raises:
            InvalidRequest: size is not WIDTHxHEIGHT.
        """
        height, width = (None, None) if self.size == "auto" else parse_size(self.size)
        first = random_seed() if self.seed is None else self.seed
        seeds = [(first + i) % (MAX_SEED + 1) for i in range(self.n)]
        return [PictureRequest(self.prompt, height, width, seed, self.num_inference_steps) for seed in seeds]


class Image(BaseModel):
    """One picture. `revised_prompt` is there when the prompt was too long: the part that was drawn."""

    b64_json: str
    seed: int
    revised_prompt: str | None = None

    @classmethod
    def of(cls, picture: Picture) -> Self:
        png = base64.b64encode(encode_png(picture.pixels)).decode()
        revised = picture.prompt.text if picture.prompt.dropped else None
        return cls(b64_json=png, seed=picture.seed, revised_prompt=revised)


class InputTokensDetails(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """Tokens as the transformer sees them: the prompt's once, the image's for every picture."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    """The answer to `POST /v1/images/generations`."""

    created: int
    data: list[Image]
    output_format: Literal["png"] = "png"
    size: str
    usage: Usage

    @classmethod
    def of(cls, pictures: list[Picture], token_pixels: int) -> Self:
        """Encodes the pictures.

        Args:
            pictures: at least one; all of the same size and prompt.
            token_pixels: edge of the square that one image token stands for.
        """
        height, width, _ = pictures[0].pixels.shape
        text = len(pictures[0].prompt.ids)
        image = len(pictures) * (height // token_pixels) * (width // token_pixels)
        return cls(
            created=int(time.time()),
            data=[Image.of(picture) for picture in pictures],
            size=f"{width}x{height}",
            usage=Usage(
                input_tokens=text,
                input_tokens_details=InputTokensDetails(text_tokens=text),
                output_tokens=image,
                total_tokens=text + image,
            ),
        )


class ModelCard(BaseModel):
    """The answer to `GET /v1/models/{id}`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "zimage-trt"


class ModelList(BaseModel):
    """The answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The answer to `GET /health`."""

    status: Literal["ok"] = "ok"
    model: str
    precision: str
    flavor: str
