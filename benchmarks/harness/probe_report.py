"""Figures of a self-test, as a table and for JSON."""

import math
from collections.abc import Sequence
from typing import Any

from engine.self_test import Result


def table(results: Sequence[Result]) -> list[str]:
    """Return a line per output: relative L2 of the whole and of the worst row, and scale, each beside its limit."""
    lines = [f"{'graph':16}{'probe':22}{'output':16}{'relative L2':>18}{'worst row':>18}{'scale - 1':>18}"]
    for each in results:
        found, limit = each.found, each.allowed
        pairs = ((found.whole, limit.whole), (found.row, limit.row), (abs(found.gain - 1), limit.gain))
        figures = "".join(f"{f'{figure:.1e} ({most:.0e})':>18}" for figure, most in pairs)
        lines.append(f"{each.graph:16}{each.probe:22}{each.output:16}{figures}  {each.fault or ''}".rstrip())
    return lines


def figures_of(results: Sequence[Result]) -> dict[str, Any]:
    """Return the worst figures of each graph; None for one that is not finite."""
    graphs: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(result.graph for result in results):
        own = [result for result in results if result.graph == name]
        worst = {
            "relative_l2": max(result.found.whole for result in own),
            "worst_row": max(result.found.row for result in own),
            "share_of_limit": max(_share(result) for result in own),
        }
        finite = all(math.isfinite(_share(result)) for result in own)  # max() may skip NaN
        graphs[name] = {key: figure if finite else None for key, figure in worst.items()}
    return {"graphs": graphs}


def _share(result: Result) -> float:
    """Return how much of what is allowed an output takes; 1 and more is a fault."""
    found, limit = result.found, result.allowed
    return max(found.whole / limit.whole, found.row / limit.row, abs(found.gain - 1) / limit.gain)
