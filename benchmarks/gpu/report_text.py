"""`report.md` of `zimage-bench gpu-check`: a table of questions and answers, then the figures of each part."""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.findings import Figures
from benchmarks.gpu.parts import Part

HIDDEN = ("answer", "failed", "left_out", "output", "part_seconds")  # shown in other places than the list of figures


def status(found: Figures) -> str:
    """Return the outcome of a part in a line."""
    if "left_out" in found:
        return f"left out: {found['left_out']}"
    if "failed" in found:
        return f"FAILED: {found['failed']}"
    return str(found.get("answer", "done"))


def markdown(parts: Sequence[Part], measured: dict[str, Any]) -> str:
    """Return the report as Markdown.

    Args:
        parts: parts in order.
        measured: content of report.json.
    """
    figures = measured["figures"]
    lines = ["# gpu-check", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in {**measured["hardware"], **measured["versions"]}.items()]
    lines += ["", "| Part | Question | Answer | s |", "| --- | --- | --- | --- |"]
    shown = [part for part in parts if part.name in figures]
    for part in shown:
        found = figures[part.name]
        lines.append(f"| {part.name} | {part.question} | {_cell(status(found))} | {found.get('part_seconds', '')} |")
    for part in shown:
        lines += _section(part, figures[part.name])
    return "\n".join([*lines, ""])


def _section(part: Part, found: Figures) -> list[str]:
    rows = {key: value for key, value in found.items() if key not in HIDDEN}
    if "left_out" in found or not (rows or "failed" in found):
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
            return "; ".join(f"{key} {_plain(one)}" for key, one in value.items())
        case list():
            return ", ".join(_plain(one) for one in value)
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
