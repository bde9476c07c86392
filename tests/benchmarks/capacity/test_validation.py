"""Predictions beside measurements: what is close enough, and what is said about the rest."""

import pytest

from benchmarks.capacity.devices.reports import Percentiles, Rung
from benchmarks.capacity.validation import Comparison, compare, verdict
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.records import Record


def rung(p50: float, p95: float | None, rate: float) -> Rung:
    none = Percentiles(None, None, None)
    return Rung(60.0, 6.0, 54, rate, Percentiles(p50, p95, None), none, none, users=10)


def predicted(seconds: float) -> RungFigures:
    """Return the figures of 50 requests that took `seconds` each, but for the last, which took twice as long."""
    records = [Record("square", at, at, at + seconds * (2 if at == 49 else 1), "ok", images=1) for at in range(50)]
    return RungFigures.of(records, 60.0)


def test_equal_figures_have_no_error() -> None:
    found = compare(rung(1.0, 1.0, 50 / 60), [predicted(1.0)])
    assert [comparison.error_percent for comparison in found] == pytest.approx([0.0, 0.0, 0.0])
    assert verdict(found) == "all 3 predictions are within 10 % of the measurement"


def test_prediction_off_by_more_than_ten_percent_is_named() -> None:
    found = compare(rung(1.0, 1.25, 50 / 60), [predicted(1.0), predicted(1.1)])
    assert [comparison.is_close for comparison in found] == [True, False, True]
    assert verdict(found).endswith("the worst is p95 of 10 users, -16.0 %")


@pytest.mark.parametrize(
    ("measured", "expected", "is_close"), [(None, None, True), (1.0, None, False), (None, 1.0, False)]
)
def test_figure_that_only_one_side_has_is_not_close(
    measured: float | None, expected: float | None, is_close: bool
) -> None:
    assert Comparison("10 users", "p95", measured, expected).is_close == is_close
