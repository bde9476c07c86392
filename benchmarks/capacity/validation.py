"""Predictions of a load test beside its measurements, rung by rung. Knows figures, not how a prediction is made."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.capacity.devices.reports import Rung
from benchmarks.workload.figures import RungFigures

TOLERANCE = 10.0  # percent that a prediction may be off


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one rung.

    Attributes:
        rung: such as "10 users" or "2 per s".
        figure: such as "p95".
        measured, predicted: seconds, or images per second; None if there were too few requests.
    """

    rung: str
    figure: str
    measured: float | None
    predicted: float | None

    @property
    def error_percent(self) -> float | None:
        """Return by how many percent of the measurement the prediction is off; None if one of them is missing."""
        if self.measured is None or self.predicted is None or not self.measured:
            return None
        return 100 * (self.predicted - self.measured) / self.measured

    @property
    def is_close(self) -> bool:
        """True if the prediction is within the tolerance. A figure that only one of both has is not."""
        if self.measured is None and self.predicted is None:
            return True
        return self.error_percent is not None and abs(self.error_percent) <= TOLERANCE


FIGURES: Mapping[str, Callable[[Rung | RungFigures], float | None]] = {
    "p50": lambda rung: rung.latency_s.p50,
    "p95": lambda rung: rung.latency_s.p95,
    "images per s": lambda rung: rung.achieved_per_s,
}


def compare(measured: Rung, predicted: Sequence[RungFigures]) -> list[Comparison]:
    """Compare a rung of a load report with its prediction, the mean of several simulations."""
    return [
        Comparison(measured.name, figure, of(measured), _mean([of(each) for each in predicted]))
        for figure, of in FIGURES.items()
    ]


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Return the result of a validation as one sentence."""
    missed = [each for each in comparisons if not each.is_close]
    if not missed:
        return f"all {len(comparisons)} predictions are within {TOLERANCE:g} % of the measurement"
    worst = max(missed, key=lambda each: abs(each.error_percent or float("inf")))
    error = "unknown" if worst.error_percent is None else f"{worst.error_percent:+.1f} %"
    return (
        f"{len(missed)} of {len(comparisons)} predictions miss the measurement by more than {TOLERANCE:g} %; "
        f"the worst is {worst.figure} of {worst.rung}, {error}"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
