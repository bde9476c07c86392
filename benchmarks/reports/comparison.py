"""Load tests beside each other: other runs, other versions, or other servers under the same load."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports.charts import Axis, line_chart
from benchmarks.reports.numbers import MISSING, compact, percent, seconds
from benchmarks.reports.page import Section, bullets, charts_grid, table
from benchmarks.reports.rungs import (
    LATENCY,
    SUCCESS,
    Report,
    Rung,
    axis_title,
    has_equal_rungs,
    is_open_loop,
    load,
    numbered,
    rungs,
    series,
    target_name,
)


def read_report(path: Path) -> Report:
    """Read the JSON of `zimage-bench load`: its --output, or its saved stdout, whose last line is the JSON.

    Raises:
        ValueError: the file holds something else.
    """
    text = path.read_text(encoding="utf-8").strip()
    try:
        found: Report = json.loads(text if text.startswith("{") else text[text.rfind("\n") + 1 :])
        comparison_section([found])  # now: after an hour of load is too late to learn that a figure is missing
        is_right = found["benchmark"] == "load"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_right = False
    if not is_right:
        raise ValueError(f"{path} is no report of `zimage-bench load` of this version; give the file of its --output")
    return found


def comparison_section(reports: Sequence[Report]) -> Section:
    """Return charts and a table with all reports; the first is the one that the page is about."""
    names = numbered([target_name(report) for report in reports])
    first = reports[0]
    alike = [(name, report) for name, report in zip(names, reports, strict=True) if _have_one_axis(first, report)]
    places = sorted({rung["place"] for _, report in alike for rung in rungs(report)})
    x = Axis(axis_title(first), ticks=tuple(places))

    def chart(title: str, y: Axis, of: Callable[[Rung], float | None]) -> str:
        return line_chart(title, x, y, [series(one, name, of) for name, one in alike])

    charts = charts_grid(
        chart("Throughput", Axis("right images per second"), lambda rung: rung["achieved_per_s"]),
        chart("Success", SUCCESS, lambda rung: rung["success_percent"]),
        chart("Latency, p50", LATENCY, lambda rung: rung["latency_s"]["p50"]),
        chart("Latency, p95", LATENCY, lambda rung: rung["latency_s"]["p95"]),
    )
    header = ["load, run", "success", "images/s", "p50", "p95", "p99", "max"]
    parts = [bullets(found) if (found := _differences(names, reports)) else "", charts]
    return Section("Side by side", (*parts, table("All runs by load", header, _rows(names, reports))))


def _have_one_axis(one: Report, other: Report) -> bool:
    """Tell whether charts can show both: by load, or by number if loads are repeated and the same in both."""
    if axis_title(one) != axis_title(other):
        return False
    return not has_equal_rungs(one) or list(map(load, rungs(one))) == list(map(load, rungs(other)))


def _rows(names: Sequence[str], reports: Sequence[Report]) -> list[list[str]]:
    """Return a row per load and report, equal loads below each other."""
    found = [
        (is_open_loop(report), load(rung), rung["place"], number, rung)
        for number, report in enumerate(reports)
        for rung in rungs(report)
    ]
    return [
        [
            f"{rung['name']}, {names[number]}",
            percent(rung["success_percent"]),
            compact(rung["achieved_per_s"]),
            *(seconds(rung["latency_s"][name]) for name in ("p50", "p95", "p99", "max")),
        ]
        for *_, number, rung in sorted(found, key=lambda one: one[:4])
    ]


def _differences(names: Sequence[str], reports: Sequence[Report]) -> list[str]:
    """Return how the setups differ from the first one's, since such runs do not compare like with like."""
    found = []
    first = _setup(reports[0])
    for name, report in zip(names[1:], reports[1:], strict=True):
        other = _setup(report)
        differing = [key for key, value in first.items() if other[key] != value]
        if differing:
            details = "; ".join(f"{key}: {_short(other[key])}, not {_short(first[key])}" for key in differing)
            found.append(f"{name} had another setup. {details}.")
        if not _have_one_axis(reports[0], report):
            found.append(f"{name} is in the table only: its rungs do not fit into the charts of {names[0]}.")
    return found


def _setup(report: Report) -> Mapping[str, Any]:
    figures, hardware = report["figures"], report["hardware"]
    return {
        "requests": [_kind(kind) for kind in figures["workload"]["mix"]],
        "endpoint": figures["target"]["endpoint"],
        "pause": figures["workload"]["think_s"],
        "processor": hardware.get("cpu"),
        "cores": hardware.get("cores"),
        "GPUs": [gpu["name"] for gpu in hardware.get("gpus", ())],
    }


def _kind(kind: Mapping[str, Any]) -> str:
    steps = kind.get("steps")
    return f"{kind['width']}x{kind['height']}" + (f" in {steps} steps" if steps else "")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return MISSING if value is None else str(value)
