"""LoRA tags in prompts, as AUTOMATIC1111's web UI has them: `a cat <lora:outlines:0.8>`. Knows no LoRAs."""

import math
import re
from dataclasses import dataclass

from engine.errors import InvalidRequest

# begins at the first of several spaces only: trying each would take seconds for a prompt of spaces
TAG = re.compile(r"(?<!\s)\s*<(lora|lyco|hypernet):([^<>]*)>")
ECHO = 64  # characters of a tag that an error repeats


@dataclass(frozen=True, slots=True)
class TaggedPrompt:
    """A prompt without its tag.

    Attributes:
        lora: name of the LoRA; None for none.
        strength: by which its change of the weights is multiplied.
    """

    text: str
    lora: str | None = None
    strength: float = 1.0


def parse(prompt: str) -> TaggedPrompt:
    """Take the LoRA out of a prompt. One with a strength of 0 counts as absent, as in the web UI.

    Raises:
        InvalidRequest: there are several, or a tag is not `<lora:NAME>` or `<lora:NAME:STRENGTH>`.
    """
    tags = list(TAG.finditer(prompt))
    text = TAG.sub("", prompt).strip() if tags else prompt
    used = [(name, strength) for name, strength in map(_lora, tags) if strength != 0]
    if len(used) > 1:
        raise InvalidRequest(
            f"prompt must name one LoRA at most, got {len(used)}; zimage-lora combines several into one", "prompt"
        )
    return TaggedPrompt(text, *used[0]) if used else TaggedPrompt(text)


def _lora(tag: re.Match[str]) -> tuple[str, float]:
    name, *rest = tag[2].split(":")
    try:
        strength = float(rest[0]) if rest else 1.0
    except ValueError:
        strength = math.nan
    if tag[1] == "hypernet" or not name or len(rest) > 1 or not math.isfinite(strength):
        shown = tag[0].strip()[:ECHO]
        raise InvalidRequest(f"prompt must hold tags such as <lora:NAME:0.8> only, got {shown!r}", "prompt")
    return name, strength
