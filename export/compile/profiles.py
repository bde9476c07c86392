"""Profiles, the ranges of shapes that plans support: `--profile` and its defaults."""

import re
from collections.abc import Sequence

from engine.errors import BuildError
from engine.plan.manifest import Model, Profile, Range, padded
from engine.size import Size


def parse_profile(text: str, model: Model) -> Profile:
    """Parse `SIZE[,SIZE...][:BATCH]` into the range that spans the sizes, tuned for the first of them.

    A SIZE is WIDTHxHEIGHT or the side of a square, in pixels. "512,1024x1536:2" gives widths of 512..1024, heights of
    512..1536 and batches of 1 or 2, tuned for 512x512.

    Raises:
        BuildError: the text has another form, or a size or the batch is out of range.
    """
    sizes, batch = split_profile(text)
    return _profile(text, sizes, batch, model)


def split_profile(text: str) -> tuple[list[Size], int]:
    """Return the sizes and the largest batch of `SIZE[,SIZE...][:BATCH]`, whatever the model takes.

    Raises:
        BuildError: the text has another form.
    """
    match = re.fullmatch(r"(\d{1,5}(?:x\d{1,5})?(?:,\d{1,5}(?:x\d{1,5})?)*)(?::(\d{1,5}))?", text, re.ASCII)
    if match is None:
        raise BuildError(f"--profile must read like 512,1024x1536:2 (sizes, then the largest batch), got {text!r}")
    return [Size.parse(part) for part in match[1].split(",")], int(match[2] or 1)


def default_profiles(sample_size: int, model: Model) -> tuple[Profile, ...]:
    """Return two profiles around the model's default side: one for usual sizes in batches, one up to twice the side.

    For Z-Image-Turbo (1024): 256..1024 tuned for 1024, batch 4, and 256..2048 tuned for 1536, batch 1.
    """
    s = sample_size
    usual = _profile("usual", [(s, s), (s // 4, s // 4)], 4, model)
    large = _profile("large", [(s * 3 // 2, s * 3 // 2), (s // 4, s // 4), (2 * s, 2 * s)], 1, model)
    return usual, large


def _profile(name: str, sizes: Sequence[tuple[int, int]], batch: int, model: Model) -> Profile:
    multiple = model.size_multiple
    _, rows, columns = model.rope.axes_lens
    for size in sizes:
        for value, limit in zip(size, (columns * multiple, rows * multiple), strict=True):
            if value % multiple or not 4 * multiple <= value <= limit:
                raise BuildError(
                    f"--profile {name}: got {value}; sizes are multiples of {multiple} from {4 * multiple} to {limit}"
                )
    if not 1 <= batch <= 64:
        raise BuildError(f"--profile {name}: the batch must be between 1 and 64, got {batch}")
    widths, heights = zip(*sizes, strict=True)
    return Profile(
        name,
        Range(min(heights), heights[0], max(heights)),
        Range(min(widths), widths[0], max(widths)),
        Range(1, 1, batch),
        Range(padded(1), padded(64), padded(model.prompt.max_tokens)),
    )
