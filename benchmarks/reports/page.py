"""A report as one HTML file: text, tables and charts, without scripts and without anything loaded from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a name that slips through as HTML can load and run nothing


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        title: plain text.
        parts: HTML from `paragraph`, `table`, `charts_grid` and the charts.
        note: plain text below the heading, in a quiet colour.
    """

    title: str
    parts: tuple[str, ...]
    note: str = ""


def page(title: str, sections: Sequence[Section], summary: Sequence[str] = ()) -> str:
    """Return a whole HTML file.

    Args:
        summary: lines of plain text below the heading.
    """
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style></head>",
            f"<body><header><h1>{escape(title)}</h1>",
            *(paragraph(line) for line in summary),
            "</header><main>",
            *map(_section, sections),
            "</main></body></html>\n",
        )
    )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """Return a list of plain texts."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def charts_grid(*figures: str) -> str:
    """Return charts that stand beside each other where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>'


def details(title: str, content: str) -> str:
    """Return HTML that is folded below a title, in plain text, until a reader opens it."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts that scrolls sideways where it is too wide.

    The first cell of a row is its heading; the other cells are aligned right.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _section(section: Section) -> str:
    note = f'<p class="quiet">{escape(section.note)}</p>' if section.note else ""
    return f"<section><h2>{escape(section.title)}</h2>{note}{''.join(section.parts)}</section>"
