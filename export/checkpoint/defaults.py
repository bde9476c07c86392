"""Steps and guidance for requests that name none, as the authors of the checkpoint recommend.

No file of a checkpoint holds them, so they follow from the time shift of its scheduler, which is what sets the two
official checkpoints apart and what fine-tunes in their layout inherit:

    Tongyi-MAI/Z-Image-Turbo  shift 3  8 steps   no guidance (distilled; github.com/Tongyi-MAI/Z-Image, README)
    Tongyi-MAI/Z-Image        shift 6  50 steps  scale 4 (model card: 28 to 50 steps, 3 to 5; its example: 50 and 4)
"""

from typing import NamedTuple

TURBO_SHIFT = 3.0  # of distilled checkpoints, at most; above, a checkpoint is taken for Z-Image


class Defaults(NamedTuple):
    """Steps and diffusers' guidance scale of a request that names none."""

    steps: int
    guidance: float


TURBO, BASE = Defaults(8, 0.0), Defaults(50, 4.0)


def defaults_for(shift: float) -> Defaults:
    """Return the defaults of a checkpoint by `scheduler_config.json`'s shift."""
    return BASE if shift > TURBO_SHIFT else TURBO
