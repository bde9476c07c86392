"""The page of a capacity: its tables, and the plots that it simulates."""

from dataclasses import replace

import pytest

from benchmarks.capacity import curves
from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.capacity_page import COMPUTED, capacity_page
from benchmarks.capacity.curves import gpus_against_objective, latency_against_load
from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.devices.gpus import gpu
from benchmarks.capacity.devices.source import Source
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop
from benchmarks.workload.mix import Mix
from benchmarks.workload.objective import Objective


@pytest.fixture(scope="module")
def assessment() -> Assessment:
    """Return eight users of H100s, of which two are enough."""
    deployment = Deployment(
        source=Source.of_gpu(gpu("H100"), 0.45),
        mix=Mix.sizes("1024x1024"),
        load=ClosedLoop(8, 1.0),
        per_host=8,
        seconds=40.0,
        warmup=4.0,
    )
    objectives = Objective.parse_all("p95=5s,success=99")
    return Assessment.of(deployment, objectives, 1, 8, seeds=(1,), price=2.0, load_seconds=60.0, quietest=0.5)


def test_latency_grows_with_load_and_falls_with_gpus(assessment: Assessment) -> None:
    found = list(latency_against_load(assessment))
    assert [curve.gpus for curve in found] == [1, 2, 4]
    assert [users for users, _ in found[0].points] == [2, 4, 6, 8, 10, 12]
    first, last = found[0].points[0][1], found[0].points[-1][1]
    assert first is not None and last is not None and last > 2 * first
    at_most = [curve.points[-1][1] or 0.0 for curve in found]
    assert at_most == sorted(at_most, reverse=True)


def test_tighter_objective_needs_more_gpus_and_more_money(assessment: Assessment) -> None:
    points = list(gpus_against_objective(assessment))
    assert [point.seconds for point in points] == [3.75, 5.0, 7.5, 10.0, 15.0]
    found = [point.gpus for point in points if point.gpus is not None]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]
    assert [point.cost for point in points] == [2.0 * number for number in found]


def test_page_shows_tables_plots_and_that_nothing_was_measured(
    assessment: Assessment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "LOADS", (0.5, 1.0))
    monkeypatch.setattr(curves, "LOOSER", (1.0, 2.0))
    html = capacity_page([assessment], {})
    for text in (COMPUTED, "8 users who think 1 s, 1024x1024", "p95 against load", "4 GPUs", "--queue"):
        assert text in html, text
    assert html.count("<svg") == 2


def test_open_loop_is_sized_from_the_arrivals_that_gpus_can_take(assessment: Assessment) -> None:
    rate = 5.0
    objectives = Objective.parse_all("success=99")
    deployment = replace(assessment.deployment, load=OpenLoop(rate))
    found = Assessment.of(deployment, objectives, 1, 8, seeds=(1,), price=None, load_seconds=60.0, quietest=0.5)
    assert min(trial.gpus for trial in found.sizing.trials) == found.sizing.gpus == 6  # 5 x 1.04 s of work a second
    assert found.limit == "6 GPUs are enough; fewer were not simulated, since arrivals keep 5.22 of them busy."


def test_quietest_time_need_not_reach_the_rate_of_the_load(assessment: Assessment) -> None:
    objectives = Objective.parse_all("rate=1.5")
    found = Assessment.of(
        assessment.deployment, objectives, 1, 8, seeds=(1,), price=None, load_seconds=60.0, quietest=0.2
    )
    assert found.settings is not None and (found.settings.least, found.settings.most) == (1, 2)
