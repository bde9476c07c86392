"""The figures of a simulated fleet against those that load tests compute from the records of the same requests."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import msgspec
import pytest
from fakes.service_times import scenario

from benchmarks.simulation.fleet.outcomes import Outcomes
from benchmarks.simulation.scenario import ClosedLoop, EmbeddedServer, Fleet
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.records import Outcome, Record, Throttle
from server.jobs.admission.admission import Limits

SECONDS, WARMUP = 100.0, 10.0
MISSING = ("late_s", "queue_s", "drawing_s", "by_kind", "timeline")  # from a fleet


def record(rng: random.Random) -> Record:
    """Return a request that ended somehow; one whose client gave up was asked to come back."""
    due, outcome = rng.uniform(0.0, 1.2 * SECONDS), rng.choice(get_args(Outcome))
    ended = due + rng.lognormvariate(0.0, 1.5)
    has_given_up = outcome in ("throttled", "refused")
    throttles = [Throttle(due, 1.0, is_honoured=True)] * rng.randrange(3)
    throttles += [Throttle(ended, rng.uniform(1.0, 9.0), is_honoured=False)] * has_given_up
    return Record(
        "one",
        due,
        due,
        ended,
        outcome,
        first_byte=ended - due,
        images=rng.randrange(1, 4),
        throttles=tuple(throttles),
    )


def fleet_figures(records: Sequence[Record]) -> RungFigures:
    outcomes = Outcomes()
    for each in records:
        last = each.throttles[-1] if each.throttles else None
        come_back = last.at + last.retry_after if last and not last.is_honoured else 0.0
        outcomes.add(
            each.due, each.ended, each.outcome, each.images, throttles=len(each.throttles), come_back=come_back
        )
    return outcomes.figures(SECONDS, WARMUP)


def comparable(figures: RungFigures) -> object:
    """Return figures without what a fleet does not have, to eleven digits."""
    found = {name: value for name, value in msgspec.to_builtins(figures).items() if name not in MISSING}
    del found["throttled"]["retry_after_s"]
    return rounded(found)


def rounded(value: object) -> object:
    match value:
        case float():
            return float(f"{value:.11g}")
        case dict():
            return {key: rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [rounded(each) for each in value]
    return value


@pytest.mark.parametrize("count", [0, 1, 19, 1000])
def test_fleet_has_the_figures_that_a_load_test_has_for_the_same_requests(count: int) -> None:
    rng = random.Random(7)
    records = [record(rng) for _ in range(count)]
    assert comparable(fleet_figures(records)) == comparable(RungFigures.of(records, SECONDS, WARMUP))


def test_clients_without_patience_wait_as_long_at_a_fleet_as_at_a_server() -> None:
    load = ClosedLoop(8, think=1.0, patience=0.5)
    given = scenario(server=EmbeddedServer(limits=Limits(queue=4)), load=load, seconds=120.0)
    server, fleet = (simulate(each).figures for each in (given, replace(given, server=Fleet(1, claim=0.0, queue=4))))
    for found in (server, fleet):
        assert found.throttled.gave_up > 40
        assert found.latency_s.p50 is not None and found.latency_s.p50 >= 1.0, "Retry-After is a second at least"
    assert fleet.latency_s.mean == pytest.approx(server.latency_s.mean, rel=0.1)
