"""Numbers in the tables of a capacity: rounded, but not to what they are not."""

from benchmarks.capacity import tables
from benchmarks.capacity.fleet_costs import FleetCosts
from benchmarks.capacity.responses import Response
from benchmarks.simulation.scenario import SimulationResult
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.records import Record


def test_success_of_nearly_all_requests_is_not_shown_as_100_percent() -> None:
    records = [Record("square", at, at, at + 1.0, "ok" if at else "failed", images=1) for at in range(3000)]
    figures = RungFigures.of(records, 3600.0)
    response = Response("8 GPUs", SimulationResult(figures), FleetCosts(999.7, 1e6, price=1.0), 3600.0)
    header, (row,) = tables.responses("burst", [response])
    shown = dict(zip(header, row, strict=True))
    assert (shown["success"], shown["p50"], shown["cost"]) == ("99.97 %", "1 s", "1,000")
