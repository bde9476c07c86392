"""Plain-text tables for reports on stdout."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain-text table, the first column aligned left, the others right, without empty columns."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    lines = [[row[column] for column in kept] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
