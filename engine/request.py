"""What can be asked for: a prompt, a size, a seed, a number of steps. What plans cover is in `manifest`."""

import random
import re
from dataclasses import dataclass

from engine.errors import InvalidRequest

MAX_SEED = 2**32 - 1  # MT19937's seed, as torch uses it


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """What to draw. Sizes in pixels; None stands for what the plans are tuned for."""

    prompt: str
    height: int | None = None
    width: int | None = None
    seed: int = 0  # 0..MAX_SEED
    num_inference_steps: int | None = None  # forward passes; None for the model's own number, 8


def random_seed() -> int:
    """A seed for a request that names none."""
    return random.randint(0, MAX_SEED)


def parse_size(text: str) -> tuple[int, int]:
    """ "WIDTHxHEIGHT" in pixels to (height, width); "512" is a square.

    Raises:
        InvalidRequest: names what was got.
    """
    match = re.fullmatch(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?", text)
    if match is None:
        raise InvalidRequest(f"size must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text[:40]!r}", "size")
    return int(match[2] or match[1]), int(match[1])
