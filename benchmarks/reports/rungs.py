"""The rungs of a load test's report, as every table and chart of it needs them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.reports.charts import Axis, Series
from benchmarks.reports.numbers import compact

Report = Mapping[str, Any]  # the JSON of `zimage-bench load`
Rung = Mapping[str, Any]

LONGEST_ERROR = 200  # letters
LATENCY = Axis("seconds, logarithmic", is_log=True)
SUCCESS = Axis("percent of requests", ticks=(0, 20, 40, 60, 80, 100))


def rungs(report: Report) -> list[Rung]:
    """Return the rungs in the order in which they ran, each with its `name` and its `place` on an axis.

    The place is the load of the rung; its number in the run if any load comes several times, as in a soak test.
    """
    found = report["figures"]["rungs"]
    names = numbered([load_name(rung["users"], rung["rate"]) for rung in found])
    places = range(1, len(found) + 1) if has_equal_rungs(report) else map(load, found)
    return [{**rung, "name": name, "place": place} for rung, name, place in zip(found, names, places, strict=True)]


def has_equal_rungs(report: Report) -> bool:
    """Tell whether any load comes several times."""
    loads = [load(rung) for rung in report["figures"]["rungs"]]
    return len(set(loads)) < len(loads)


def is_open_loop(report: Report) -> bool:
    """Tell whether requests came at a rate, whatever the answers, or from users who wait for theirs."""
    return bool(report["figures"]["workload"]["loop"] == "open")


def load(rung: Rung) -> float:
    """Return the users of a rung, or its requests per second."""
    return float(rung["rate"] if rung["users"] is None else rung["users"])


def load_name(users: int | None, rate: float | None) -> str:
    """Return the load of a rung as words."""
    if users is None:
        return f"{compact(rate)} requests/s"
    return "1 user" if users == 1 else f"{compact(users)} users"


def axis_title(report: Report) -> str:
    """Return the title of the axis on which rungs have their place."""
    if has_equal_rungs(report):
        return "number of the rung"
    return "requests per second" if is_open_loop(report) else "users"


def series(report: Report, name: str, of: Callable[[Rung], float | None]) -> Series:
    """Return a line with a figure of every rung."""
    return Series(name, [(rung["place"], of(rung)) for rung in rungs(report)])


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names, with numbers where several are equal: "a (1)", "a (2)"."""
    counts, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return found


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
