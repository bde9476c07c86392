"""`report.md` of `zimage-bench gpu-check`: a table of questions and answers, then the figures of each part."""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.findings import Figures
from benchmarks.gpu.parts import Part

HIDDEN = (
    "answer",
    "failed",
    "left_out",
    "unfinished",
    "output",
    "part_seconds",
)  # shown in other places than the list of figures


def status(found: Figures) -> str:
    """Return the outcome of a part in a line."""
    if "left_out" in found:
        return f"left out: {found['left_out']}"
    if "unfinished" in found:
        return "; ".join(["not finished: " + found["unfinished"], *filter(None, [found.get("answer")])])
    if "failed" in found:
        return f"FAILED: {found['failed']}"
    return str(found.get("answer", "done"))


def counts(figures: Figures, not_run: int) -> str:
    """Return the numbers of parts by outcome in a line."""
    failed, left_out = (sum(word in found for found in figures.values()) for word in ("failed", "left_out"))
    done = sum(not found.keys() & {"failed", "left_out", "unfinished"} for found in figures.values())
    return f"{done} parts done, {failed} failed, {left_out} left out, {not_run} not run or not finished"


def markdown(parts: Sequence[Part], measured: dict[str, Any]) -> str:
    """Return the report as Markdown.

    Args:
        parts: parts in order.
        measured: content of report.json.
    """
    figures, not_run = measured["figures"], measured["not_run"]
    lines = ["# gpu-check", "", f"{counts(figures, len(not_run))}.", ""]
    if measured["quick"]:
        lines += ["**Tiny sizes (`--quick`)**: the questions name the full sizes; the figures are of small ones.", ""]
    about = {**measured["hardware"], "layers": measured["layers"], **measured["versions"]}
    lines += [f"- {key}: {_plain(value)}" for key, value in about.items()]
    ran = [part for part in parts if part.name in figures and "left_out" not in figures[part.name]]
    lines += ["", "| Part | Question | Answer | s |", "| --- | --- | --- | --- |"]
    for part in ran:
        found = figures[part.name]
        lines.append(f"| {part.name} | {part.question} | {_cell(status(found))} | {found.get('part_seconds', '')} |")
    lines += _left_out(figures)
    if not_run:
        lines += ["", "Not run, for lack of time or because `--only` named others. Run them into this report with", ""]
        lines += ["```sh", measured["run_the_rest"], "```", ""]
        lines += [f"- {part.name}: {part.question}" for part in parts if part.name in not_run]
    for part in ran:
        lines += _section(part, figures[part.name])
    return "\n".join([*lines, ""])


def _left_out(figures: Figures) -> list[str]:
    """Return the reasons for which parts were left out, each with its parts."""
    names: dict[str, list[str]] = {}
    for name, found in figures.items():
        if "left_out" in found:
            names.setdefault(found["left_out"], []).append(name)
    lines = [f"- {reason}: {', '.join(parts)}" for reason, parts in names.items()]
    return ["", "Left out, because", "", *lines] if lines else []


def _section(part: Part, found: Figures) -> list[str]:
    rows = {key: value for key, value in found.items() if key not in HIDDEN}
    if not (rows or "failed" in found):
        return []
    lines = ["", f"## {part.name}: {part.question}", ""]
    if "failed" in found:
        lines += [f"**Failed**: {found['failed']}", "", "```", found.get("output", "").replace("```", "'''"), "```", ""]
    for key, value in rows.items():
        if isinstance(value, dict) and any(isinstance(row, dict) for row in value.values()):
            lines += [f"- {key}:"] + [f"  - {name}: {_plain(row)}" for name, row in value.items()]
        else:
            lines.append(f"- {key}: {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    match value:
        case bool():
            return str(value)
        case float():
            return f"{value:.4g}"
        case dict():
            return "; ".join(f"{key}: {_plain(one)}" for key, one in value.items())
        case list():
            return ", ".join(_plain(one) for one in value) or "none"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
