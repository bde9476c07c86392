"""Plain-text tables of `zimage-bench capacity`."""

from collections.abc import Sequence

from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.deployment import in_words
from benchmarks.capacity.prediction import Prediction
from benchmarks.capacity.responses import Response
from benchmarks.capacity.validation import verdict
from benchmarks.harness.text_table import text_table
from benchmarks.reports.numbers import compact, percent, seconds, whole
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header and rows


def workload(assessment: Assessment) -> str:
    """Return the workload in words."""
    deployment = assessment.deployment
    sizes = ", ".join(map(str, deployment.sizes))
    match deployment.load:
        case ClosedLoop(users=users, think=think):
            return (
                f"{users} users who think {think:g} s, {sizes}"
                if users > 1
                else f"1 user who thinks {think:g} s, {sizes}"
            )
        case OpenLoop(rate=float() | int() as rate):
            return f"{rate:g} request{'s' if rate != 1 else ''} per second, {sizes}"
    return f"changing rate, {sizes}"


def bill(assessments: Sequence[Assessment]) -> Table:
    """Return the number of GPUs of each kind, and what comes with it."""
    header = (
        "",
        "one image",
        "GPUs",
        "p50",
        "p95",
        "p99",
        "images/s",
        "busy",
        "cost/hour",
        "cost/1,000",
        "kWh/1,000 at most",
    )
    return header, [_bill_row(assessment) for assessment in assessments]


def settings(assessments: Sequence[Assessment]) -> Table:
    """Return the settings of server and autoscaler for each kind of GPU that suffices."""
    header = ("", "--queue", "jobs per GPU", "GPUs at least", "at most", "cool-down", "served by")
    rows = []
    for assessment in assessments:
        found = assessment.settings
        if found is not None:
            per_host = assessment.deployment.per_host
            machines = found.most // per_host
            served = "one zimage-serve" if found.most <= per_host else f"{machines} hosts with {in_words(per_host)}"
            row = (found.queue, found.jobs_per_gpu, found.least, found.most, f"{found.cool_down:g} s", served)
            rows.append((assessment.deployment.source.name, *map(str, row)))
    return header, rows


def responses(name: str, found: Sequence[Response]) -> Table:
    """Return what a fleet does in a situation."""
    header = (
        name,
        "success",
        "429s",
        "p50",
        "p95",
        "p99",
        "most waiting",
        "replays",
        "GPU hours",
        "cost",
        "cost/1,000",
    )
    rows = []
    for response in found:
        figures, costs = response.result.figures, response.costs
        latency = figures.latency_s
        rows.append(
            (
                response.fleet,
                percent(figures.success_percent),
                whole(figures.throttled.answers),
                *map(seconds, (latency.p50, latency.p95, latency.p99)),
                whole(max((moment.waiting for moment in response.result.timeline), default=0)),
                str(response.result.replays),
                f"{costs.gpu_hours:.1f}",
                _price(costs.total),
                _price(costs.per_thousand_images),
            )
        )
    return header, rows


def predictions(prediction: Prediction) -> Table:
    """Return measured and predicted figures of each rung."""
    header = ("rung", "figure", "measured", "predicted", "error")
    rows = [
        (each.rung, each.figure, compact(each.measured), compact(each.predicted), _signed(each.error_percent))
        for each in prediction.comparisons
    ]
    return header, rows


def print_bill(assessments: Sequence[Assessment]) -> None:
    """Print the workload, the table of GPUs with what limits each, and the settings."""
    print(workload(assessments[0]))
    print("objectives: " + ", ".join(each.text for each in assessments[0].sizing.objectives))
    print(text_table(*bill(assessments)))
    for assessment in assessments:
        print(f"{assessment.deployment.source.name}: {assessment.limit}")
    if (found := settings(assessments))[1]:
        print(text_table(*found))
    for assessment in assessments:
        print(f"{assessment.deployment.source.name}: {assessment.deployment.source.origin}")


def print_predictions(prediction: Prediction) -> None:
    """Print the table of a validation and its result."""
    print(text_table(*predictions(prediction)))
    print(verdict(prediction.comparisons))


def _bill_row(assessment: Assessment) -> tuple[str, ...]:
    source, costs = assessment.deployment.source, assessment.costs
    alone = seconds(assessment.deployment.alone)
    if costs is None:
        return source.name, alone, "none", *[""] * 8
    trial = assessment.sizing.chosen[0]
    latency = trial.figures.latency_s
    return (
        source.name,
        alone,
        str(assessment.sizing.gpus),
        *map(seconds, (latency.p50, latency.p95, latency.p99)),
        compact(trial.figures.achieved_per_s),
        f"{100 * trial.busy:.0f} %",
        _price(costs.total),
        _price(costs.per_thousand_images),
        _price(costs.kilowatt_hours_per_thousand_images),
    )


def _price(value: float | None) -> str:
    """Format a price or an energy; a column without any is left out."""
    return "" if value is None else compact(value)


def _signed(error: float | None) -> str:
    return "unknown" if error is None else f"{error:+.1f} %"
