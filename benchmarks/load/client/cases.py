"""Requests whose images are known: a few prompts and seeds for each kind of a mix, and the images that edits take.

Knows no HTTP.
"""

import io
from functools import lru_cache

import msgspec
import numpy as np
from PIL import Image

from benchmarks.overhead.traffic import PROMPTS
from benchmarks.workload.mix import Mix, RequestKind
from engine.size import Size

FIRST_SEED = 1000


class Case(msgspec.Struct, frozen=True):
    """A request with a prompt and a seed. Further images of one request have the seeds after it."""

    id: str
    kind: RequestKind
    prompt: str
    seed: int


def make_cases(mix: Mix, count: int) -> tuple[Case, ...]:
    """Return `count` cases for each kind of a mix."""
    return tuple(
        Case(f"{kind.name}/{number}", kind, PROMPTS[number % len(PROMPTS)], FIRST_SEED + 10 * number)
        for kind in mix.kinds
        for number in range(count)
    )


@lru_cache(maxsize=16)
def init_image(size: Size) -> bytes:
    """Return a PNG file to edit: colours that change from corner to corner."""
    across, down = np.meshgrid(np.linspace(0, 255, size.width), np.linspace(0, 255, size.height))
    pixels = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
