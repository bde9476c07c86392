"""Fields that bodies of requests share, and the rule for fields without an effect. Knows no endpoint.

A field that is null counts as absent. A field that cannot change the image is accepted and reported (`ignored`). A
field that contradicts another one, or that nobody knows, is refused by name.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.request import MAX_SEED, random_seed

MAX_PROMPT = 32_000  # characters; the limit that OpenAI documents. The model reads far less
RANDOM = -1  # the seed that stands for a random one


def _whole(value: Any) -> Any:
    """Return an integer that was written as 1.0 as an integer, and anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _with_nulls(schema: dict[str, Any]) -> None:
    """Allow null in the schema of every optional field."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and "anyOf" not in field:
            about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            schema["properties"][name] = about | {"anyOf": [field, {"type": "null"}]}


Prompt = Annotated[str, Field(max_length=MAX_PROMPT, json_schema_extra={"pattern": r"\S"})]  # not only spaces
Integer = Annotated[int, BeforeValidator(_whole)]
Seed = Annotated[Integer, Field(ge=RANDOM, le=MAX_SEED, description="-1 for a random one")]


class RequestBody(BaseModel):
    """Body of a request for images. A field that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=_with_nulls)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None or key not in cls.model_fields}

    def ignored(self) -> tuple[str, ...]:
        """Return the names of the given fields that cannot change the image, as the client wrote them."""
        return ()


def seed_of(given: int | None) -> int:
    """Return the seed of a request: the one that was given, or else a random one."""
    return random_seed() if given in (None, RANDOM) else given
