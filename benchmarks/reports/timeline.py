"""The timeline of a load test: throughput, latency and errors over all rungs, one after the other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.reports.charts import Axis, Band, Series, line_chart
from benchmarks.reports.page import Section, paragraph
from benchmarks.reports.rungs import LATENCY, Report, Rung, rungs

MINUTES_FROM = 600  # seconds of a run whose axis has minutes
DEFAULT_WIDTH = 1.0  # seconds of the only point of a timeline

Moment = Mapping[str, Any]


def timeline_section(report: Report) -> Section | None:
    """Return the charts over time; None if no rung has any point."""
    found = [rung for rung in rungs(report) if rung["timeline"]]
    if not found:
        return None
    starts = _starts(found)
    unit, factor = ("minutes", 60.0) if starts[-1] > MINUTES_FROM else ("seconds", 1.0)
    x = Axis(f"{unit} since the start of the first rung")
    bands = [
        Band(rung["name"], start / factor, end / factor)
        for rung, start, end in zip(found, starts, starts[1:], strict=False)
    ]

    def series(name: str, of: Callable[[Moment, float], float | None]) -> Series:
        points = [
            ((start + moment["at_s"]) / factor, of(moment, _width(rung)))
            for rung, start in zip(found, starts, strict=False)
            for moment in rung["timeline"]
        ]
        return Series(name, points)

    def chart(title: str, y: Axis, *lines: Series, is_ordered: bool = False) -> str:
        return line_chart(title, x, y, lines, bands=bands, is_wide=True, is_ordered=is_ordered, has_markers=False)

    errors = series("failed", lambda moment, width: moment["errors"] / width)
    throttled = series("429 or 503", lambda moment, width: moment["throttled"] / width)
    has_errors = any(height for one in (errors, throttled) for _, height in one.points)
    return Section(
        "Over time",
        (
            chart("Throughput", Axis("images per second"), series("images", lambda one, width: one["images"] / width)),
            chart(
                "Latency of what ended",
                LATENCY,
                series("p50", lambda moment, _: moment["p50_s"]),
                series("p95", lambda moment, _: moment["p95_s"]),
                is_ordered=True,
            ),
            chart("Failed requests, and requests to come back later", Axis("answers per second"), errors, throttled)
            if has_errors
            else paragraph("No request failed, and none was asked to come back later."),
        ),
        "The shade alternates from rung to rung. A rung lasts until its last request has ended.",
    )


def _starts(found: Sequence[Rung]) -> list[float]:
    """Return when each rung began, in seconds since the first one, and when the last one ended.

    A rung lasts until its last request has ended.
    """
    starts = [0.0]
    for rung in found:
        starts.append(starts[-1] + max(rung["seconds"], rung["timeline"][-1]["at_s"] + _width(rung)))
    return starts


def _width(rung: Rung) -> float:
    """Return the seconds between two points of a timeline."""
    moments = rung["timeline"]
    return float(moments[1]["at_s"] - moments[0]["at_s"]) if len(moments) > 1 else DEFAULT_WIDTH
