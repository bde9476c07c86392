"""Objectives of a load test, such as p95=5s, and whether figures meet them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from benchmarks.workload.figures import RungFigures

FORM = re.compile(r"(?P<name>[a-z0-9_]+)=(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>ms|s|%|/s)?")
SECONDS, PERCENT, RATE = {"s": 1.0, "ms": 1e-3}, {"": 1.0, "%": 1.0}, {"": 1.0, "/s": 1.0}


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that can have an objective.

    Attributes:
        units: factor of each unit; "" for a number without one.
        of: returns the figure of a rung; None if the rung has too few requests for it.
        is_least: True if the figure must be at least the objective, False if at most.
    """

    units: Mapping[str, float]
    of: Callable[[RungFigures], float | None]
    is_least: bool = False


MEASURES = {
    "p50": Measure(SECONDS, lambda rung: rung.latency_s.p50),
    "p95": Measure(SECONDS, lambda rung: rung.latency_s.p95),
    "p99": Measure(SECONDS, lambda rung: rung.latency_s.p99),
    "first_byte_p95": Measure(SECONDS, lambda rung: rung.first_byte_s.p95),
    "success": Measure(PERCENT, lambda rung: rung.success_percent, is_least=True),
    "rate": Measure(RATE, lambda rung: rung.achieved_per_s, is_least=True),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound for one figure of every rung.

    Attributes:
        text: as it was given.
        name: of the figure, in MEASURES.
        bound: seconds, percent, or images per second.
    """

    text: str
    name: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an objective such as p95=5s, first_byte_p95=300ms, success=99.9 or rate=2.

        Raises:
            ValueError: it is none; the message says what is.
        """
        found = FORM.fullmatch(text.strip())
        measure = MEASURES.get(found["name"]) if found else None
        if found is None or measure is None or (found["unit"] or "") not in measure.units:
            raise ValueError(
                "an objective is p50, p95, p99 or first_byte_p95 in s or ms, success in percent, or rate in images "
                f"per second, such as p95=5s,success=99.9; got {text.strip()!r}"
            )
        bound = float(found["number"]) * measure.units[found["unit"] or ""]
        if measure.units is PERCENT and bound > 100:
            raise ValueError(f"{found['name']} is 100 % at most, got {text.strip()!r}")
        return cls(text.strip(), found["name"], bound)

    @classmethod
    def parse_all(cls, text: str) -> tuple[Self, ...]:
        """Read objectives with commas between them."""
        return tuple(cls.parse(part) for part in text.split(","))

    def check(self, figures: RungFigures) -> "Result":
        """Compare the objective with the figures of a rung; an unknown figure misses it."""
        measure = MEASURES[self.name]
        value = measure.of(figures)
        if value is None:
            return Result(self, None, is_met=False)
        return Result(self, value, is_met=value >= self.bound if measure.is_least else value <= self.bound)


@dataclass(frozen=True, slots=True)
class Result:
    """An objective with the figure of a rung, None if the rung has too few requests for it."""

    objective: Objective
    value: float | None
    is_met: bool


def check(objectives: Sequence[Objective], figures: RungFigures) -> list[Result]:
    """Compare objectives with the figures of a rung."""
    return [objective.check(figures) for objective in objectives]
