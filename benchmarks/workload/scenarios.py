"""Scenarios of users by name, as load tests of image servers state them, and mixes by name."""

from dataclasses import dataclass

from benchmarks.workload.mix import Mix, RequestKind
from engine.size import Size

THINK = 1.0  # mean pause of a user between requests, seconds
MULTIPLE = 16  # pixels; sides of the images of every Z-Image


@dataclass(frozen=True, slots=True)
class Scenario:
    """Users that send a request, wait for its images, pause, and start over.

    Attributes:
        users: number of users of each rung; equal ones show what changes with time.
        minutes: length of a rung.
        think: mean pause of a user between requests, seconds.
    """

    name: str
    users: tuple[int, ...]
    minutes: float
    think: float = THINK


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("baseline", (1,), 5),
        Scenario("medium", (10,), 5),
        Scenario("surge", (30, 40, 50), 5),
        Scenario("soak", (10,) * 6, 10),
        Scenario("ladder", (1, 5, 10, 20, 30, 50), 5),
    )
}
MIXES = ("square", "sizes", "mixed")


def named_mix(name: str, size: Size) -> Mix:
    """Return a mix by its name.

    Args:
        name: "square" for one size; "sizes" for three sizes; "mixed" for sizes, edits, and batch jobs of two images.
        size: of the largest images.

    Raises:
        ValueError: there is no such mix.
    """
    square = RequestKind(name="square", width=size.width, height=size.height, weight=5)
    height = _three_quarters(size.height)
    small = RequestKind(name="small", width=_three_quarters(size.width), height=height, weight=3)
    wide = RequestKind(name="wide", width=size.width, height=height, weight=2)
    edit = RequestKind(name="edit", width=size.width, height=size.height, edit=True)
    batch = RequestKind(name="batch", width=size.width, height=size.height, images=2, priority="batch")
    kinds = {"square": (square,), "sizes": (square, small, wide), "mixed": (square, small, wide, edit, batch)}
    if name not in kinds:
        raise ValueError(f"the mixes are {', '.join(MIXES)}, got {name!r}")
    return Mix(kinds[name])


def _three_quarters(side: int) -> int:
    return max(side * 3 // 4 // MULTIPLE, 1) * MULTIPLE
