"""The answer of `zimage-bench capacity` as one HTML page: tables, and plots of fleets under load."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.capacity import tables
from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.curves import gpus_against_objective, latency_against_load
from benchmarks.capacity.deployment import in_words
from benchmarks.capacity.responses import Response
from benchmarks.reports.charts import Axis, Band, Limit, Series, line_chart
from benchmarks.reports.page import Section, charts_grid, page, paragraph, table
from benchmarks.simulation.scenario import ClosedLoop, FleetMoment

COMPUTED = "Simulated from rooflines, not measured: GPUs that you rent may need more or fewer."
HOURS_FROM = 7200.0  # seconds of a timeline from which its axis has hours


def capacity_page(assessments: Sequence[Assessment], responses: Mapping[str, Sequence[Response]]) -> str:
    """Return the page; simulates what its plots show."""
    first = assessments[0]
    objectives = ", ".join(each.text for each in first.sizing.objectives)
    summary = [f"{tables.workload(first)}; objectives: {objectives}."]
    if not all(assessment.deployment.source.is_measured for assessment in assessments):
        summary.append(COMPUTED)
    sections = [
        Section(
            "GPUs",
            (
                table("The fewest GPUs that meet the objectives with every seed", *tables.bill(assessments)),
                *(paragraph(f"{each.deployment.source.name}: {each.limit}") for each in assessments),
                table("Settings of the server and of an autoscaler", *tables.settings(assessments)),
            ),
        ),
        *(_plots(assessment) for assessment in assessments if assessment.sizing.gpus is not None),
        *(_response(name, found) for name, found in responses.items()),
        Section(
            "Sources",
            tuple(paragraph(f"{a.deployment.source.name}: {a.deployment.source.origin}") for a in assessments),
        ),
    ]
    return page("Capacity", sections, summary)


def _plots(assessment: Assessment) -> Section:
    deployment, sizing = assessment.deployment, assessment.sizing
    load = "users" if isinstance(deployment.load, ClosedLoop) else "requests per second"
    limits = [Limit(each.text, each.bound) for each in sizing.objectives if each.name == "p95"]
    fleets = [Series(in_words(curve.gpus), curve.points) for curve in latency_against_load(assessment)]
    points = list(gpus_against_objective(assessment))
    has_price = assessment.costs is not None and assessment.costs.price is not None
    wanted = [(each.seconds, each.cost if has_price else each.gpus) for each in points]
    return Section(
        deployment.source.name,
        (
            charts_grid(
                line_chart(
                    "p95 against load", Axis(load), Axis("p95, seconds"), fleets, limits=limits, is_ordered=True
                ),
                line_chart(
                    "Cost against the latency objective" if has_price else "GPUs against the latency objective",
                    Axis("latency objective, seconds"),
                    Axis("price of an hour" if has_price else "GPUs"),
                    [Series(deployment.source.name, wanted)],
                ),
            ),
        ),
    )


def _response(name: str, responses: Sequence[Response]) -> Section:
    """Return the timelines of fleets in one situation."""
    return Section(
        name,
        (
            table("The whole time", *tables.responses(name, responses)),
            *(chart for response in responses for chart in _timeline(response)),
        ),
    )


def _timeline(response: Response) -> tuple[str, str]:
    """Return the charts of GPUs and jobs, and of latency, over time."""
    unit, scale = ("hours", 3600.0) if response.seconds >= HOURS_FROM else ("minutes", 60.0)
    bands: tuple[Band, ...] = ()
    if response.band is not None:
        name, start, end = response.band
        bands = (Band(name, start / scale, end / scale),)

    def series(name: str, of: Callable[[FleetMoment], float | None]) -> Series:
        return Series(name, [(moment.at_s / scale, of(moment)) for moment in response.result.timeline])

    def chart(title: str, y: str, *lines: Series) -> str:
        x = Axis(f"{unit} from the start")
        title = f"{response.fleet}: {title}"
        return line_chart(title, x, Axis(y), lines, bands=bands, is_wide=True, has_markers=False)

    return (
        chart(
            "GPUs and jobs",
            "number",
            series("GPUs ready", lambda moment: moment.ready),
            series("busy", lambda moment: moment.busy),
            series("loading", lambda moment: moment.starting),
            series("jobs waiting", lambda moment: moment.waiting),
        ),
        chart("p95", "seconds", series("p95", lambda moment: moment.p95_s)),
    )
