"""Mixes of requests: kinds with weights, read from a file or given as sizes. Knows no server."""

import json
import random
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec

from engine.size import Size

Weight = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Side = Annotated[int, msgspec.Meta(ge=16, le=1 << 13)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Guidance = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Deadline = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class RequestKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of request. What is None is the server's default.

    Attributes:
        weight: share of the requests, relative to the other kinds of the mix.
        width, height: pixels.
        lora: name of a LoRA that the server offers.
        edit: True for a request that begins with an image, at strength 0.6.
        images: images of one request.
        deadline: seconds until the images are no longer wanted.
    """

    name: str
    width: Side
    height: Side
    weight: Weight = 1.0
    steps: Count | None = None
    guidance_scale: Guidance | None = None
    lora: str | None = None
    edit: bool = False
    images: Count = 1
    priority: Literal["interactive", "batch"] = "interactive"
    deadline: Deadline | None = None

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)


class Mix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kinds of requests, at least one, each with a name of its own."""

    kinds: Annotated[tuple[RequestKind, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(kind.name for kind in self.kinds).items() if count > 1]
        if repeated:
            raise ValueError(f"kinds must have different names, got {repeated[0]!r} twice")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a mix from a TOML file of `[[kinds]]`, or from a JSON file of `{"kinds": [...]}`.

        Raises:
            ValueError: the file is no mix; the message names the line or the field.
        """
        try:
            return msgspec.convert(_decode(path), cls)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise ValueError(f"{path} is no mix of requests: {error}") from error

    @classmethod
    def sizes(cls, text: str) -> Self:
        """Return a mix of equal shares from sizes such as "512x512,1024x1024"."""
        return cls.of([Size.parse(size.strip()) for size in text.split(",")])

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> Self:
        """Return a mix of equal shares of sizes."""
        return cls(tuple(RequestKind(name=str(size), width=size.width, height=size.height) for size in sizes))

    def choose(self, rng: random.Random) -> RequestKind:
        """Draw a kind according to the weights."""
        return rng.choices(self.kinds, [kind.weight for kind in self.kinds])[0]


def _decode(path: Path) -> Any:
    content = path.read_text(encoding="utf-8")
    return tomllib.loads(content) if path.suffix == ".toml" else json.loads(content)
