"""Steps and guidance for requests that name none, as the authors of the checkpoint recommend.

No file of a checkpoint holds them. The configurations of the two official checkpoints differ only in the time shift of
the scheduler, which fine-tunes in their layout inherit, so the nearer shift decides:

    Tongyi-MAI/Z-Image-Turbo  shift 3   8 steps without guidance
    Tongyi-MAI/Z-Image        shift 6  50 steps with scale 4; 28 to 50 steps and scales of 3 to 5 are recommended

Sources: the model zoo of github.com/Tongyi-MAI/Z-Image (8 steps without CFG, 50 with it), and for the ranges and the
example of 50 steps at scale 4 the model card, as vllm-project/vllm-omni#1229 quotes it.
"""

from typing import NamedTuple

MIDDLE = (3.0 + 6.0) / 2  # of the two shifts


class Defaults(NamedTuple):
    """Steps and diffusers' guidance scale of a request that names none."""

    steps: int
    guidance: float


TURBO, BASE = Defaults(8, 0.0), Defaults(50, 4.0)


def defaults_for(shift: float) -> Defaults:
    """Return the defaults of a checkpoint by `scheduler_config.json`'s shift."""
    return BASE if shift > MIDDLE else TURBO
