"""Body of OpenAI's endpoints for images that begin with an image. Knows no routes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.errors import InvalidRequest
from server.api.fields import IGNORED, MAX_PROMPT
from server.api.openai_schemas import ImagesRequest

NAMES = ("image", "images", "image[]", "init_image")  # of the image in JSON
ADDRESS_KEYS = ("image_url", "url")  # of an object that stands for an image


class EditRequest(ImagesRequest):
    """Body of `POST /v1/images/edits` and `/v1/images/variations`. A field that is null counts as absent."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    further_images: Annotated[
        Any,
        Field(
            alias="image",
            description="image to start from, or several, of which the first is used; like init_image in JSON",
        ),
    ] = None  # once validated, a list of those after the first
    input_fidelity: Annotated[Literal["high", "low"], Field(description=IGNORED)] | None = None
    bot_task: Annotated[str, Field(description="ignored; vLLM-Omni's load tool sends it")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_one_image(cls, body: Any) -> Any:
        """Move the first image to `init_image`, from wherever the body has it; of further ones, keep the number."""
        if not isinstance(body, dict):
            return body
        given = {name: body[name] for name in NAMES if body.get(name) is not None}
        if len(given) > 1:
            first, second, *_ = given
            raise InvalidRequest(f"{second} is there beside {first}; send only one of them", second)
        fields = {name: value for name, value in body.items() if name not in NAMES}
        if isinstance(fields.get("mask"), dict):
            fields["mask"] = _text(fields["mask"], "mask")
        for name, value in given.items():
            images = [_text(each, name) for each in (value if isinstance(value, list) else [value])]
            fields |= {"init_image": images[0]} if images else {}
            fields |= {"image": [""] * (len(images) - 1)} if len(images) > 1 else {}
        return fields

    def ignored(self) -> tuple[str, ...]:
        further = (f"image[{number}]" for number, _ in enumerate(self.further_images or (), 1))
        unused = (name for name in ("input_fidelity", "bot_task") if getattr(self, name) is not None)
        return (*super().ignored(), *unused, *further)


def _text(image: Any, name: str) -> str:
    """Return the base64, data URL or URL of an image in JSON. Raises InvalidRequest: it is something else."""
    for key in ADDRESS_KEYS:
        if isinstance(image, Mapping) and key in image:
            image = image[key]
    if not isinstance(image, str):
        raise InvalidRequest(f"{name} must be an image as base64 or as a data URL, or an object with image_url", name)
    return image
