"""Fields that all requests for images share, and the rule for fields without an effect. Knows no endpoint.

A field that is null counts as absent. A field that cannot change the image is accepted and reported (`ignored`). A
field that contradicts another one, or that nobody knows, is refused by name.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from engine.errors import InvalidRequest
from engine.images.preparation import MASK_BLUR, MAX_MASK_BLUR, MAX_PADDING, ResizeMode
from engine.request import (
    MAX_GUIDANCE,
    MAX_LORA,
    MAX_LORA_STRENGTH,
    MAX_NORMALIZATION,
    MAX_SEED,
    MAX_STEPS,
    ImageRequest,
    random_seed,
)
from engine.size import Size
from server.jobs.job import Priority

Number = TypeVar("Number", int, float)

MAX_PROMPT = 32_000  # characters; the limit that OpenAI documents. The model reads far less
MAX_SIZE = 32  # characters of "WIDTHxHEIGHT"
MAX_EDGE = 999_999  # pixels that `size` can express; the plans' limits are lower
SIZE = r"^(auto|[0-9]{1,6}([xX*×][0-9]{1,6})?)$"  # for the document; `Size.parse` gives better errors
RANDOM = -1  # the seed that stands for a random one
IGNORED = "ignored"
BOOLEANS = ("true", "false")
WITHOUT_EFFECT = ("complexity", "style", "moderation", "user", "safety_identifier", "vae_use_slicing", "vae_use_tiling")
MAX_PLAN_ID = 128  # characters
PRIORITIES: dict[str, Priority] = {"flex": "batch", "priority": "interactive"}  # by tier; the others leave it open
UNGUIDED = 1.0  # CFG scale at which negative + scale * (positive - negative) is the positive prediction


def _whole(value: Any) -> Any:
    """Return an integer that was written as 1.0 as an integer, and anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any, info: ValidationInfo) -> Any:
    """Return true as 1 and false as 0, which diffusers takes for the same, and anything else as it is."""
    is_text = info.mode not in ("python", "json")  # of a form or a query
    return float(value in (True, "true")) if isinstance(value, bool) or (is_text and value in BOOLEANS) else value


def _with_nulls(schema: dict[str, Any]) -> None:
    """Allow null in the schema of every optional field."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and "anyOf" not in field:
            about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            schema["properties"][name] = about | {"anyOf": [field, {"type": "null"}]}


Prompt = Annotated[str, Field(max_length=MAX_PROMPT, json_schema_extra={"pattern": r"\S"})]  # not only spaces
WHOLE = BeforeValidator(_whole)  # the last in an Annotated, so that the document names the limits
Edge = Annotated[int, Field(ge=1, le=MAX_EDGE), WHOLE]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS), WHOLE]
CfgScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE + UNGUIDED)]
CfgNormalization = Annotated[
    float,
    Field(ge=0, le=MAX_NORMALIZATION, json_schema_extra={"type": ["number", "boolean"]}),
    BeforeValidator(_number),
]
CfgTruncation = Annotated[float, Field(ge=0, le=1)]


class RequestBody(BaseModel):
    """A body of a request. A field that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=_with_nulls)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None or key not in cls.model_fields}

    def ignored(self) -> tuple[str, ...]:
        """Return the names of the given fields that cannot change the images, as the client wrote them."""
        return ()


class ImageFields(RequestBody):
    """Fields of every request for images."""

    prompt: Prompt
    model: Annotated[str, Field(description="any name; the answer tells the real one")] | None = None
    size: Annotated[
        str,
        Field(max_length=MAX_SIZE, description='"auto" or "WIDTHxHEIGHT"', json_schema_extra={"pattern": SIZE}),
    ] = "auto"
    width: Annotated[Edge, Field(description="another way to write size")] | None = None
    height: Annotated[Edge, Field(description="another way to write size")] | None = None
    seed: Annotated[int, Field(ge=RANDOM, le=MAX_SEED, description="-1 for a random one"), WHOLE] = RANDOM
    num_inference_steps: Steps | None = None
    steps: Annotated[Steps, Field(description="another name of num_inference_steps")] | None = None
    guidance_scale: (
        Annotated[
            float,
            Field(ge=0, le=MAX_GUIDANCE, description="guidance as in diffusers; 0 for none, the model's if absent"),
        ]
        | None
    ) = None
    cfg_scale: Annotated[CfgScale, Field(description="guidance_scale + 1; up to 1 for none")] | None = None
    true_cfg_scale: Annotated[CfgScale, Field(description="another name of cfg_scale")] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT, description="ignored without guidance")] = ""
    cfg_normalization: Annotated[
        CfgNormalization,
        Field(description="largest norm of the guided velocity, relative to the positive one's; 0 for no bound"),
    ] = 0.0
    cfg_truncation: Annotated[
        CfgTruncation, Field(description="progress (1 - noise level) beyond which steps are not guided")
    ] = 1.0
    lora: (
        Annotated[str, Field(max_length=MAX_LORA, description="name of a LoRA, from loras in /v1/model_info")] | None
    ) = None
    lora_strength: Annotated[
        float, Field(ge=-MAX_LORA_STRENGTH, le=MAX_LORA_STRENGTH, description="ignored without a LoRA; 0 for none")
    ] = 1.0
    timeout: (
        Annotated[float, Field(gt=0, le=86400, description="seconds until the images are no longer wanted")] | None
    ) = None
    priority: (
        Annotated[Priority, Field(description="batch: after interactive requests, with a small share of the time")]
        | None
    ) = None
    service_tier: (
        Annotated[Literal["auto", "default", "flex", "priority"], Field(description="flex: like priority batch")] | None
    ) = None
    plan_id: (
        Annotated[
            str,
            Field(max_length=MAX_PLAN_ID, description="plans to generate with, as plan_id in an image's metadata"),
        ]
        | None
    ) = None
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"], Field(description=IGNORED)
    ] = "auto"
    complexity: Annotated[Literal["low", "medium", "high"], Field(description=IGNORED)] | None = None
    style: Annotated[Literal["vivid", "natural"], Field(description=IGNORED)] | None = None
    moderation: Annotated[Literal["auto", "low"], Field(description=IGNORED)] | None = None
    user: Annotated[str, Field(description=IGNORED)] | None = None
    safety_identifier: Annotated[str, Field(description=IGNORED)] | None = None
    vae_use_slicing: Annotated[bool, Field(description=IGNORED)] | None = None
    vae_use_tiling: Annotated[bool, Field(description=IGNORED)] | None = None

    def image(self) -> ImageRequest:
        """Return the request for the first image; the seeds of the others follow. Without a seed, pick one.

        Raises:
            InvalidRequest: size is not WIDTHxHEIGHT, or two fields contradict each other.
        """
        width, height = (None, None) if self.size == "auto" else Size.parse(self.size)
        return ImageRequest(
            self.prompt,
            agreed({"size": width, "width": self.width}),
            agreed({"size": height, "height": self.height}),
            random_seed() if self.seed == RANDOM else self.seed,
            agreed({"num_inference_steps": self.num_inference_steps, "steps": self.steps}),
            self.negative_prompt,
            agreed(self._guidance()),
            self.lora,
            1.0 if self.lora is None else self.lora_strength,
            self.cfg_normalization,
            self.cfg_truncation,
        )

    def job_priority(self) -> Priority:
        """Return the priority. Raises InvalidRequest: priority and service_tier contradict each other."""
        by_tier = PRIORITIES.get(self.service_tier or "auto")
        if None not in (self.priority, by_tier) and self.priority != by_tier:
            raise InvalidRequest(
                f"service_tier {self.service_tier} contradicts priority {self.priority}; send only one of them",
                "service_tier",
            )
        return self.priority or by_tier or "interactive"

    def names(self) -> dict[str, str]:
        """Return the names under which the client gave the fields of `ImageRequest`, where they differ."""
        return {} if self.size == "auto" else {"width": "size", "height": "size"}

    def ignored(self) -> tuple[str, ...]:
        unused = {
            "lora_strength": "lora_strength" in self.model_fields_set and self.lora is None,
            **{name: getattr(self, name) is not None for name in WITHOUT_EFFECT},
            "service_tier": self.service_tier == "priority",  # every interactive request has the same
            "quality": self.quality != "auto",  # which leaves the choice to the server
        }
        return tuple(name for name, is_unused in unused.items() if is_unused)

    def _guidance(self) -> dict[str, float | None]:
        """Return diffusers' guidance scale as each field asks for it."""
        cfg_scales = {"cfg_scale": self.cfg_scale, "true_cfg_scale": self.true_cfg_scale}
        return {"guidance_scale": self.guidance_scale} | {
            name: None if scale is None else max(scale - UNGUIDED, 0.0) for name, scale in cfg_scales.items()
        }


class InitImageFields(ImageFields):
    """Fields of requests that may begin with an image."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT, description="may be empty with an init_image")]
    init_image: (
        Annotated[str, Field(description="image to start from, as base64 or as a data URL; URLs are not fetched")]
        | None
    ) = None
    mask: Annotated[str, Field(description="image like init_image: white, or transparent, is drawn anew")] | None = None
    strength: (
        Annotated[float, Field(ge=0, le=1, description="how much of init_image is changed; 0.6, or 1 with a mask")]
        | None
    ) = None
    resize_mode: Annotated[ResizeMode, Field(description="for an init_image of another aspect ratio than the size")] = (
        "crop"
    )
    padding_mask_crop: (
        Annotated[
            int,
            Field(
                ge=0,
                le=MAX_PADDING,
                description="generate only the masked part, with so many pixels around it, and paste it back",
            ),
            WHOLE,
        ]
        | None
    ) = None
    mask_blur: Annotated[
        int,
        Field(ge=0, le=MAX_MASK_BLUR, description="soft edge in pixels, used with padding_mask_crop"),
        WHOLE,
    ] = MASK_BLUR

    def ignored(self) -> tuple[str, ...]:
        has_image, is_cropped = self.init_image is not None, self.padding_mask_crop is not None
        unused = {
            "strength": not has_image,
            "resize_mode": not has_image or is_cropped,
            "padding_mask_crop": not has_image,
            "mask_blur": not has_image or not is_cropped,
        }
        given = self.model_fields_set
        return (*super().ignored(), *(name for name, is_unused in unused.items() if is_unused and name in given))


def agreed(values: Mapping[str, Number | None]) -> Number | None:
    """Return the value that the fields for one thing have in common; None if none of them is given.

    Raises:
        InvalidRequest: two of them contradict each other; `param` names the second one.
    """
    given = [(name, value) for name, value in values.items() if value is not None]
    for name, value in given[1:]:
        first, expected = given[0]
        if not math.isclose(value, expected, abs_tol=1e-9):  # 1.3 - 1 and 0.3 are the same scale
            raise InvalidRequest(
                f"{name} contradicts {first}: they ask for {value:.9g} and {expected:.9g}; send only one of them", name
            )
    return given[0][1] if given else None
