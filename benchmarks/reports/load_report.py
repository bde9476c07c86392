"""The HTML report of a load test: one file with findings, tables and charts, beside other runs where there are any."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from benchmarks.reports.charts import Axis, Limit, Series, bar_chart, line_chart
from benchmarks.reports.comparison import comparison_section
from benchmarks.reports.load_findings import findings
from benchmarks.reports.load_table import mean_of_gpus, objective_rows, table_rows
from benchmarks.reports.numbers import MISSING, compact, megabytes, percent, seconds, watts, whole
from benchmarks.reports.page import Section, bullets, charts_grid, details, page, paragraph, table
from benchmarks.reports.rungs import (
    LATENCY,
    SUCCESS,
    Report,
    Rung,
    axis_title,
    is_open_loop,
    rungs,
    series,
    server_figure,
    target_name,
)
from benchmarks.reports.timeline import timeline_section
from benchmarks.workload.objective import Objective

PERCENTILES = ("p50", "p95", "p99")
RATE = Axis("images per second")


def load_page(report: Report, others: Sequence[Report] = ()) -> str:
    """Return a load test as an HTML file.

    Args:
        others: reports of other runs or servers, which the page shows beside this one.
    """
    beside = comparison_section([report, *others]) if others else None
    parts = (_result, _charts, lambda _: beside, _distribution, timeline_section, _server, _errors, _setup)
    sections = [section for part in parts if (section := part(report)) is not None]
    return page(f"Load test of {target_name(report)}", sections, _summary(report))


def _summary(report: Report) -> list[str]:
    target, workload = report["figures"]["target"], report["figures"]["workload"]
    kinds = workload["mix"]
    asked = ", ".join(f"{kind['width']}x{kind['height']}" for kind in kinds[:4]) + ("…" if len(kinds) > 4 else "")
    is_open = workload["loop"] == "open"
    pace = "requests at a rate" if is_open else f"users who pause {seconds(workload['think_s'])} on average"
    return [f"{target['url']}, {target['endpoint']}; {asked}; {pace}.", _machine(report["hardware"])]


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = [gpu["name"] for gpu in hardware.get("gpus", ())]
    cpu = f"{hardware.get('cpu', 'unknown CPU')}, {hardware.get('cores', '?')} cores"
    return f"Load from {', '.join([cpu, *gpus])}."


def _result(report: Report) -> Section:
    header, rows = table_rows(report)
    parts = [bullets(findings(report))]
    objectives = objective_rows(report)
    if len(objectives) > 1:
        parts.append(table("Objectives", objectives[0], objectives[1:]))
    parts.append(table("Figures of every rung", header, rows))
    return Section("Result", tuple(parts))


def _charts(report: Report) -> Section:
    x = Axis(axis_title(report), ticks=tuple(sorted({rung["place"] for rung in rungs(report)})))
    rates = [series(report, "right images", lambda rung: rung["achieved_per_s"])]
    if is_open_loop(report):  # users who wait for their answers ask for no more than they get
        rates.append(series(report, "asked for", lambda rung: rung["offered_per_s"]))
    waits = [series(report, name, partial(_latency, name)) for name in PERCENTILES]
    share = [series(report, "success", lambda rung: rung["success_percent"])]
    spent = [
        series(report, "in the queue", lambda rung: rung["queue_s"]["p50"]),
        series(report, "drawing", lambda rung: rung["drawing_s"]["p50"]),
        series(report, "first byte", lambda rung: rung["first_byte_s"]["p50"]),
        series(report, "first preview", lambda rung: (rung["first_preview_s"] or {}).get("p50")),
    ]
    spent = [one for one in spent if any(height is not None for _, height in one.points)]
    return Section(
        "Rung by rung",
        (
            charts_grid(
                line_chart("Throughput", x, RATE, rates),
                line_chart("Latency, end to end", x, LATENCY, waits, limits=_limits(report), is_ordered=True),
                line_chart("Success", x, SUCCESS, share),
                line_chart("Parts of the latency, medians", x, LATENCY, spent),
            ),
        ),
    )


def _latency(percentile: str, rung: Rung) -> float | None:
    found: float | None = rung["latency_s"][percentile]
    return found


def _limits(report: Report) -> list[Limit]:
    """Return the objectives of latency percentiles, one line each."""
    texts = dict.fromkeys(one["text"] for one in report["figures"]["objectives"])
    found = [Objective.parse(text) for text in texts if text.partition("=")[0] in PERCENTILES]
    return [Limit(objective.text, objective.bound) for objective in found]


def _distribution(report: Report) -> Section:
    lines = [Series(rung["name"], _cumulative(rung)) for rung in rungs(report) if rung["histogram"]]
    chart = line_chart(
        "Requests answered within a time",
        LATENCY,
        Axis("percent of requests that got their images", ticks=(0, 20, 40, 60, 80, 100)),
        lines,
        is_ordered=True,
        has_markers=False,
    )
    rows = [
        [f"{rung['name']}, {kind}", whole(own["requests"]), percent(own["success_percent"])]
        + [seconds(own["latency_s"][name]) for name in PERCENTILES]
        for rung in rungs(report)
        for kind, own in rung["by_kind"].items()
    ]
    kinds = table("By kind of request", ["load, kind", "requests", "success", *PERCENTILES], rows)
    return Section("Distribution of latency", (charts_grid(chart), kinds if rows else ""))


def _cumulative(rung: Rung) -> list[tuple[float, float | None]]:
    """Return the percent of requests below each bound of the histogram, from the lower bound of its first bucket."""
    bounds = [bucket["up_to_s"] for bucket in rung["histogram"]]
    totals = list(accumulate((bucket["count"] for bucket in rung["histogram"]), initial=0))
    lowest = bounds[0] ** 2 / bounds[1] if len(bounds) > 1 else bounds[0]  # bounds grow by the same factor
    return [(bound, 100 * total / totals[-1]) for bound, total in zip([lowest, *bounds], totals, strict=True)]


def _server(report: Report) -> Section:
    found = [rung for rung in rungs(report) if rung.get("server")]
    if not found:
        return Section("Server", (paragraph("The server told nothing: no /metrics, and its process is unknown."),))
    counts = [server_figure(rung, "batch", "counts") or {} for rung in found]
    sizes = sorted({size for count in counts for size in count}, key=int)
    shares = {f"{size} at once": [_share(count, size) for count in counts] for size in sizes}
    x_title, names = axis_title(report), [compact(rung["place"]) for rung in found]
    memory = {"memory": [server_figure(rung, "rss_mb", "max") for rung in found]}
    charts = [bar_chart("Memory of all processes, highest", x_title, Axis("MB"), names, memory)]
    if sizes:
        y = Axis("percent of passes")
        charts.append(bar_chart("Images in a pass", x_title, y, names, shares, is_stacked=True, is_ordered=True))
    header = ["load", "memory at start", "at end", "highest", "mean batch", "in passes", "unanswered scrapes"]
    gpus = ["GPU use", "GPU memory", "GPU power"] if any(server_figure(rung, "gpus") for rung in found) else []
    rows = [_server_row(rung)[: len(header) + len(gpus)] for rung in found]
    return Section(
        "Server",
        (charts_grid(*charts), table("The server during each rung", [*header, *gpus], rows)),
    )


def _share(counts: Mapping[str, int], size: str) -> float | None:
    return 100 * counts.get(size, 0) / sum(counts.values()) if counts else None


def _server_row(rung: Rung) -> list[str]:
    return [
        rung["name"],
        *(megabytes(server_figure(rung, "rss_mb", name)) for name in ("start", "end", "max")),
        compact(server_figure(rung, "batch", "mean")),
        percent(server_figure(rung, "busy_percent")),
        whole(server_figure(rung, "missed")),
        percent(mean_of_gpus(rung, "utilisation_percent")),
        megabytes(mean_of_gpus(rung, "memory_mb")),
        watts(mean_of_gpus(rung, "power_w")),
    ]


def _errors(report: Report) -> Section | None:
    rows = [
        [error, rung["name"], whole(count)]
        for rung in rungs(report)
        for error, count in sorted(rung["errors"].items(), key=lambda pair: -int(pair[1]))
    ]
    if not rows:
        return None
    return Section("Errors", (table("Failed requests by error", ["error", "load", "requests"], rows),))


def _setup(report: Report) -> Section:
    workload, target = report["figures"]["workload"], report["figures"]["target"]
    names = list(dict.fromkeys(name for kind in workload["mix"] for name in kind))
    kinds = [[_plain(kind.get(name)) for name in names] for kind in workload["mix"]]
    about = {**{f"machine, {key}": value for key, value in report["hardware"].items()}, **report["versions"]}
    model = {f"server, {key}": value for key, value in (target.get("server") or {}).items()}
    rows = [[key, _plain(value)] for key, value in {**model, **about}.items() if not isinstance(value, dict | list)]
    return Section(
        "Setup",
        (
            table("What was asked for", names, kinds),
            details("Server, machine and versions", table("Versions", ["name", "value"], rows)),
        ),
    )


def _plain(value: Any) -> str:
    return MISSING if value is None else f"{value:g}" if isinstance(value, float) else str(value)
