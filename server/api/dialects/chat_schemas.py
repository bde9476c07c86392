"""Body of chat completions with an image as the answer. Knows no routes."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.errors import InvalidRequest
from engine.request import ImageRequest
from server.api import errors
from server.api.dialects.extra_fields import ExtraFields
from server.api.fields import MAX_PROMPT, WHOLE, InitImageFields

MAX_IMAGES = 10
MAX_MESSAGES = 1000
TEXT, IMAGE = "text", "image_url"  # types of parts that are read
OF_TEXT = (  # fields that change texts and videos only
    "audio chat_template_kwargs fps frequency_penalty ignore_eos logit_bias logprobs max_completion_tokens max_tokens"
    " metadata min_p min_tokens modalities parallel_tool_calls presence_penalty reasoning_effort repetition_penalty"
    " response_format skip_special_tokens stop stop_token_ids store stream_options"
    " temperature tool_choice tools top_k top_logprobs top_p verbosity"
)


class Part(BaseModel):
    """A part of a message: text, or an image, which `init_image` holds instead."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str = ""


class InputMessage(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(strict=True)

    role: str
    content: str | list[Part] | None = None


class ChatRequest(ExtraFields, InitImageFields):
    """Body of `POST /v1/chat/completions`. Fields of images are at the top, or in `extra_body` as with vLLM-Omni."""

    model_config = ExtraFields.model_config
    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(OF_TEXT.split(), ())

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    messages: Annotated[list[InputMessage], Field(max_length=MAX_MESSAGES)]
    num_outputs_per_prompt: Annotated[int, Field(ge=1, le=MAX_IMAGES), WHOLE] = 1
    n: Annotated[int, Field(ge=1, le=1, description="number of choices"), WHOLE] = 1
    num_frames: Annotated[int, Field(ge=1, le=1), WHOLE] = 1
    stream: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _flattened(cls, body: Any) -> Any:
        """Move the fields of `extra_body` to the top, and the user's last message to the prompt."""
        if not isinstance(body, dict):
            return body
        top = {name: value for name, value in body.items() if value is not None}
        extra = top.pop("extra_body", {})
        if not isinstance(extra, dict):
            raise InvalidRequest("extra_body must be an object", "extra_body")
        extra = {name: value for name, value in extra.items() if value is not None}
        if "prompt" in (*top, *extra):
            raise errors.unknown_parameter("prompt")
        for name in extra.keys() & top.keys():
            if extra[name] != top[name]:
                raise InvalidRequest(f"extra_body.{name} contradicts {name}; send only one of them", name)
        fields = top | extra
        content = _last_of_user(top.get("messages"))
        if images := _image_urls(content):
            if "init_image" in fields:
                raise InvalidRequest("init_image is there beside an image in messages; send only one", "init_image")
            fields |= {"init_image": images[0]}
        return fields | {"prompt": _text(content)}

    @property
    def has_image(self) -> bool:
        """True if the user's last message holds an image."""
        return bool(self._images())

    def image(self) -> ImageRequest:
        content = _last_of_user([message.model_dump() for message in self.messages])
        if isinstance(content, list) and any(part["type"] not in (TEXT, IMAGE) for part in content):
            raise InvalidRequest("messages must hold texts and images only", "messages")
        return super().image()

    def names(self) -> dict[str, str]:
        return super().names() | {"prompt": "messages"} | ({"init_image": "messages"} if self.has_image else {})

    def ignored(self) -> tuple[str, ...]:
        is_ignored = len(self.messages) > 1 or len(self._images()) > 1
        return (*super().ignored(), *(["messages"] if is_ignored else []))

    def _images(self) -> list[Any]:
        content = _last_of_user([message.model_dump() for message in self.messages])
        return [part for part in content if part["type"] == IMAGE] if isinstance(content, list) else []


def _last_of_user(messages: Any) -> Any:
    """Return the content of the user's last message, before or after validation."""
    found = messages if isinstance(messages, list) else []
    contents = [one.get("content") for one in found if isinstance(one, dict) and one.get("role") == "user"]
    return contents[-1] if contents else ""


def _text(content: Any) -> str:
    """Return the text of a message; that of malformed parts is missing."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == TEXT)
    return "\n".join(text for text in texts if isinstance(text, str))


def _image_urls(content: Any) -> list[str]:
    """Return the images of a message, as data URLs. Raises InvalidRequest if one is malformed."""
    parts = content if isinstance(content, list) else []
    images = [part.get(IMAGE) for part in parts if isinstance(part, dict) and part.get("type") == IMAGE]
    urls = [image.get("url") if isinstance(image, dict) else image for image in images]
    found = [url for url in urls if isinstance(url, str)]
    if len(found) < len(urls):
        raise InvalidRequest(
            'messages must hold images as {"image_url": {"url": "data:image/png;base64,..."}}', "messages"
        )
    return found
