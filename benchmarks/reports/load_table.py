"""The table of a load test on stdout and as CSV: a row per rung."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.harness.text_table import text_table
from benchmarks.reports.load_findings import findings
from benchmarks.reports.numbers import MISSING, compact, megabytes, percent, seconds, watts, whole
from benchmarks.reports.rungs import Report, Rung, error_line, rungs, server_figure, target_name

MOST_ERRORS = 5  # texts of errors below the table, the most frequent ones

COLUMNS: tuple[tuple[str, Callable[[Rung], str]], ...] = (
    ("requests", lambda rung: whole(rung["requests"])),
    ("success", lambda rung: percent(rung["success_percent"])),
    ("offered/s", lambda rung: compact(rung["offered_per_s"])),
    ("images/s", lambda rung: compact(rung["achieved_per_s"])),
    ("p50", lambda rung: seconds(rung["latency_s"]["p50"])),
    ("p95", lambda rung: seconds(rung["latency_s"]["p95"])),
    ("p99", lambda rung: seconds(rung["latency_s"]["p99"])),
    ("max", lambda rung: seconds(rung["latency_s"]["max"])),
    ("first byte p95", lambda rung: seconds(rung["first_byte_s"]["p95"])),
    ("preview p95", lambda rung: seconds((rung["first_preview_s"] or {}).get("p95"))),
    ("queue p50", lambda rung: seconds(rung["queue_s"]["p50"])),
    ("drawing p50", lambda rung: seconds(rung["drawing_s"]["p50"])),
    ("429s", lambda rung: whole(rung["throttled"]["answers"] or None)),
    ("wrong", lambda rung: whole(rung["wrong_images"] or None)),
    ("batch", lambda rung: compact(server_figure(rung, "batch", "mean"))),
    ("in passes", lambda rung: percent(server_figure(rung, "busy_percent"))),
    ("memory", lambda rung: megabytes(server_figure(rung, "rss_mb", "max"))),
    ("GPU", lambda rung: percent(mean_of_gpus(rung, "utilisation_percent"))),
    ("GPU power", lambda rung: watts(mean_of_gpus(rung, "power_w"))),
)


def load_table(report: Report) -> str:
    """Return the report as text: a row per rung, the errors, the objectives, and what limits."""
    header, rows = table_rows(report)
    lines = [text_table(header, [[cell.replace(MISSING, "") for cell in row] for row in rows]), ""]
    for rung in rungs(report):
        most = sorted(rung["errors"].items(), key=lambda pair: -pair[1])[:MOST_ERRORS]
        lines += [f"{rung['name']}: {count} x {error_line(error)}" for error, count in most]
    header, *rows = objective_rows(report)
    lines += [text_table(header, rows), ""] if rows else []
    return "\n".join([*lines, *findings(report)])


def table_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row per rung, without columns that no rung has a value for."""
    found = rungs(report)
    cells = {title: [cell(rung) for rung in found] for title, cell in COLUMNS}
    kept = {title: column for title, column in cells.items() if set(column) - {MISSING}}
    rows = [[rung["name"], *(column[index] for column in kept.values())] for index, rung in enumerate(found)]
    return ["load", *kept], rows


def objective_rows(report: Report) -> list[list[str]]:
    """Return a header with the loads, and a row per objective with its value and outcome at each of them."""
    results: Sequence[Mapping[str, Any]] = report["figures"]["objectives"]
    found = rungs(report)
    texts, places = (list(dict.fromkeys(one[name] for one in results)) for name in ("text", "rung"))
    cells = {(one["text"], one["rung"]): _outcome(one) for one in results}
    header = ["objective", *(found[place]["name"] for place in places)]
    return [header, *([text, *(cells.get((text, place), MISSING) for place in places)] for text in texts)]


def load_csv(report: Report) -> str:
    """Return the report as CSV: a row per rung, numbers in full, and empty cells for unknown ones."""
    rows = [_flat(target_name(report), rung) for rung in rungs(report)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def mean_of_gpus(rung: Rung, name: str) -> float | None:
    """Return the mean of a figure over the GPUs that have it."""
    known = [gpu[name] for gpu in server_figure(rung, "gpus") or () if gpu[name] is not None]
    return sum(known) / len(known) if known else None


def _flat(target: str, rung: Rung) -> dict[str, Any]:
    """Return a rung as one row; lists and texts of errors are left to the JSON."""
    row: dict[str, Any] = {"target": target, "rung": rung["name"]}
    row |= {name: rung[name] for name in ("users", "rate", "seconds", "requests", "images", "success_percent")}
    row |= {name: rung[name] for name in ("offered_per_s", "achieved_per_s")}
    for name in ("latency_s", "late_s", "first_byte_s", "first_preview_s", "queue_s", "drawing_s"):
        row |= {f"{name}_{key}": (rung[name] or {}).get(key) for key in ("p50", "p95", "p99", "mean", "max")}
    row |= {f"throttled_{name}": rung["throttled"][name] for name in ("answers", "honoured", "gave_up")}
    row |= {"errors": sum(rung["errors"].values()), "wrong_images": rung["wrong_images"]}
    row |= {f"rss_mb_{name}": server_figure(rung, "rss_mb", name) for name in ("start", "end", "max")}
    row |= {"batch_mean": server_figure(rung, "batch", "mean"), "busy_percent": server_figure(rung, "busy_percent")}
    for number, gpu in enumerate(server_figure(rung, "gpus") or ()):
        row |= {f"gpu{number}_{name}": gpu[name] for name in ("utilisation_percent", "memory_mb", "power_w")}
    return row


def _outcome(result: Mapping[str, Any]) -> str:
    """Return the value of an objective's figure, with a word if it misses the objective."""
    name, value = result["text"].partition("=")[0], result["value"]
    shown = seconds(value)
    if name in ("success", "rate"):
        shown = percent(value) if name == "success" else f"{compact(value)}/s"
    return shown if result["is_met"] else f"{shown} MISSED"
