"""Predictions of the rungs of a load report: the same users or rate, mix and time, simulated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.devices.reports import DeviceBatching, LoadReport, Rung, Workload
from benchmarks.capacity.devices.source import Source
from benchmarks.capacity.validation import Comparison, compare
from benchmarks.simulation.scenario import Change, ClosedLoop, OpenLoop
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.mix import Mix
from engine.size import Size

SEEDS = range(1, 6)  # a single minute of few users is mostly chance
CLIENTS = 1  # that a server without keys tells apart: the load generator has one address


@dataclass(frozen=True, slots=True)
class Prediction:
    """The rungs of a report with their predictions."""

    source: Source
    comparisons: tuple[Comparison, ...]

    @property
    def is_close(self) -> bool:
        """True if every prediction is within the tolerance."""
        return all(comparison.is_close for comparison in self.comparisons)

    def figures(self) -> dict[str, Any]:
        """Return the comparison for a report in JSON."""
        rows = [
            {
                "rung": each.rung,
                "figure": each.figure,
                "measured": each.measured,
                "predicted": each.predicted,
                "error_percent": each.error_percent,
                "is_close": each.is_close,
            }
            for each in self.comparisons
        ]
        return {"origin": self.source.origin, "is_close": self.is_close, "comparisons": rows}


def predict(
    report: LoadReport, source: Source, devices: int | None, max_batch: int, changes: frozenset[Change]
) -> Prediction:
    """Simulate every rung of a report of `zimage-bench load`.

    Args:
        devices: of the server; None for as many as the report names.
        max_batch: largest batch of the plans, for a report that does not say which batches gain.
    """
    workload, server = report.figures.workload, report.figures.target.server
    batching = server.batching if server else None
    best = max_batch if batching is None else max(_best_batch(batching, kind.size) for kind in workload.mix)
    found: list[Comparison] = []
    for rung in report.figures.rungs:
        deployment = Deployment(
            source=source,
            mix=Mix(workload.mix),
            load=_load(rung, workload),
            max_batch=best,
            seconds=rung.seconds,
            warmup=rung.warmup_s,
            has_different_prompts=False,
            changes=changes,
        )
        measured_on = deployment.embedded(devices or len(batching or ()) or 1)
        found += compare(rung, [simulate(deployment.scenario(measured_on, seed)).figures for seed in SEEDS])
    return Prediction(source, tuple(found))


def _load(rung: Rung, workload: Workload) -> ClosedLoop | OpenLoop:
    timeout, patience = workload.timeout_s, workload.patience_s
    if rung.rate is not None:
        return OpenLoop(rung.rate, clients=CLIENTS, timeout=timeout, patience=patience)
    assert rung.users is not None, "a rung has either users or a rate"
    return ClosedLoop(rung.users, workload.think_s or 0.0, clients=CLIENTS, timeout=timeout, patience=patience)


def _best_batch(batching: Sequence[DeviceBatching], size: Size) -> int:
    """Return the batch that the server's devices use at a size: that of the next larger measured one."""
    rows = [row for device in batching if device.state == "measured" for row in device.sizes]
    larger = [(Size.parse(row.size).area, row.best_batch) for row in rows]
    return min(((area, best) for area, best in larger if area >= size.area), default=(0, 1))[1]
