"""Body of chat completions with an image as the answer. Knows no routes."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.errors import InvalidRequest
from engine.request import ImageRequest
from server.api import errors
from server.api.dialects.extra_fields import ExtraFields
from server.api.fields import WHOLE, ImageFields

MAX_IMAGES = 10
MAX_MESSAGES = 1000
OF_TEXT = (  # fields that change texts and videos only
    "audio chat_template_kwargs fps frequency_penalty ignore_eos logit_bias logprobs max_completion_tokens max_tokens"
    " metadata min_p min_tokens modalities parallel_tool_calls presence_penalty reasoning_effort repetition_penalty"
    " response_format service_tier skip_special_tokens stop stop_token_ids store stream_options"
    " temperature tool_choice tools top_k top_logprobs top_p verbosity"
)


class Part(BaseModel):
    """A part of a message; only text is read."""

    model_config = ConfigDict(strict=True)

    type: str
    text: str = ""


class InputMessage(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(strict=True)

    role: str
    content: str | list[Part] | None = None


class ChatRequest(ExtraFields, ImageFields):
    """Body of `POST /v1/chat/completions`. Fields of images are at the top, or in `extra_body` as with vLLM-Omni."""

    model_config = ExtraFields.model_config
    without_effect: ClassVar[dict[str, tuple[Any, ...]]] = dict.fromkeys(OF_TEXT.split(), ())

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
        return top | extra | {"prompt": _text(_last_of_user(top.get("messages")))}

    def image(self) -> ImageRequest:
        content = _last_of_user([message.model_dump() for message in self.messages])
        if isinstance(content, list) and any(part["type"] != "text" for part in content):
            raise InvalidRequest("messages must hold text only; images cannot be inputs yet", "messages")
        return super().image()

    def names(self) -> dict[str, str]:
        return super().names() | {"prompt": "messages"}

    def ignored(self) -> tuple[str, ...]:
        return (*super().ignored(), *(["messages"] if len(self.messages) > 1 else []))


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
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))
