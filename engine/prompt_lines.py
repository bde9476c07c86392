"""Files of prompts for `zimage-generate --prompts`: a prompt per line, as text or as a JSON object."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from engine.errors import InvalidRequest
from engine.request import RANDOM, ImageRequest, random_seed
from engine.size import Size

COMMENT = "#"


@dataclass(frozen=True, slots=True)
class PromptLine:
    """A request that a line made.

    Attributes:
        source: file and number of the line, for messages.
        has_seed: True if the line names its seed.
        output: file to write, if the line names one.
    """

    source: str
    request: ImageRequest
    has_seed: bool
    output: Path | None


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    """Fields of a JSON line; null is the same as absent."""

    prompt: str
    size: str | None = None
    width: int | None = None
    height: int | None = None
    seed: Annotated[int, msgspec.Meta(ge=RANDOM)] | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    cfg_normalization: float | bool | None = None
    cfg_truncation: float | None = None
    output: Annotated[str, msgspec.Meta(min_length=1)] | None = None


def read_lines(text: str, name: str, default: ImageRequest) -> list[PromptLine]:
    """Read prompts, one per line. Empty lines and lines that begin with # are skipped.

    Args:
        name: name of the file, for messages.
        default: request whose fields the lines leave unchanged, its prompt excepted.

    Raises:
        InvalidRequest: a line is wrong, or there is no prompt; the message has the number of the line.
    """
    lines = list(_lines(text, name, default))
    if not lines:
        raise InvalidRequest(f"{name} holds no prompts; it must have one per line", "prompts")
    return lines


def _lines(text: str, name: str, default: ImageRequest) -> Iterator[PromptLine]:
    for number, line in enumerate(text.split("\n"), 1):
        stripped, source = line.strip(), f"{name}, line {number}"
        if not stripped or stripped.startswith(COMMENT):
            continue
        if not stripped.startswith("{"):
            yield PromptLine(source, replace(default, prompt=stripped), False, None)
            continue
        try:
            yield _from_json(stripped, source, default)
        except InvalidRequest as error:
            raise InvalidRequest(f"{source}: {error}", error.param) from error
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise InvalidRequest(f"{source}: {error}", "prompts") from error


def _from_json(line: str, source: str, default: ImageRequest) -> PromptLine:
    written = msgspec.json.decode(line, type=dict[str, Any])
    whole = {key: int(one) if isinstance(one, float) and one.is_integer() else one for key, one in written.items()}
    fields = msgspec.convert(whole, type=_Fields)
    size: tuple[int | None, int | None] = default.width, default.height
    if fields.size is not None:
        size = Size.parse(fields.size)
        if (fields.width, fields.height) != (None, None):
            raise InvalidRequest("give either size or width and height, not both", "size")
    elif (fields.width, fields.height) != (None, None):
        size = fields.width, fields.height
    given: dict[str, Any] = {
        "seed": random_seed() if fields.seed == RANDOM else fields.seed,
        "num_inference_steps": fields.steps,
        "guidance_scale": fields.guidance_scale,
        "negative_prompt": fields.negative_prompt,
        "cfg_normalization": None if fields.cfg_normalization is None else float(fields.cfg_normalization),
        "cfg_truncation": fields.cfg_truncation,
    }
    request = replace(default, prompt=fields.prompt, width=size[0], height=size[1])
    request = replace(request, **{name: value for name, value in given.items() if value is not None})
    return PromptLine(source, request, fields.seed is not None, Path(fields.output) if fields.output else None)
