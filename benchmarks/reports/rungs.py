"""The rungs of a load test's report, as every table and chart of it needs them."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reports.numbers import compact

Report = Mapping[str, Any]  # the JSON of `zimage-bench load`
Rung = Mapping[str, Any]

LONGEST_ERROR = 200  # letters


def rungs(report: Report) -> Sequence[Rung]:
    """Return the rungs in the order in which they ran."""
    found: Sequence[Rung] = report["figures"]["rungs"]
    return found


def is_open_loop(report: Report) -> bool:
    """Tell whether requests came at a rate, whatever the answers, or from users who wait for theirs."""
    return bool(report["figures"]["workload"]["loop"] == "open")


def load(rung: Rung) -> float:
    """Return the users of a rung, or its requests per second."""
    return float(rung["rate"] if rung["users"] is None else rung["users"])


def load_name(rung: Rung) -> str:
    """Return the load of a rung as words."""
    if rung["users"] is None:
        return f"{compact(rung['rate'])} requests/s"
    return "1 user" if rung["users"] == 1 else f"{compact(rung['users'])} users"


def load_title(report: Report) -> str:
    """Return the title of an axis of loads."""
    return "requests per second" if is_open_loop(report) else "users"


def target_name(report: Report) -> str:
    """Return the name of the server that was loaded."""
    target = report["figures"]["target"]
    return str(target.get("name") or target["url"])


def server_figure(rung: Rung, *names: str) -> Any:
    """Return a figure of the server in a rung, named from the outside in; None where it is unknown."""
    found: Any = rung.get("server")
    for name in names:
        found = None if found is None else found.get(name)
    return found


def error_line(text: str) -> str:
    """Return an error of a server as one line that can neither break a table nor move a terminal's cursor."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST_ERROR]
