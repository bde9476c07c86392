"""Sentences that say what limited a server under load, computed from the figures of a report."""

from collections.abc import Sequence

from benchmarks.reports.numbers import compact, joined, megabytes, percent, seconds, whole
from benchmarks.reports.rungs import Report, Rung, error_line, is_open_loop, load, rungs, server_figure

SATURATED = 0.95  # share of the best throughput from which a rung counts as saturated
COLLAPSED = 0.90  # share of the best throughput below which a higher rung has lost throughput
KEPT_UP = 0.95  # share of the offered load below which a queue grows
GROWTH = 1.1  # times the throughput of the rung before, below which more load has brought nothing
LATE = 0.1  # share of the median latency from which a late load generator distorts it
BUSY, IDLE = 90, 70  # percent of the time in forward passes


def findings(report: Report) -> list[str]:
    """Return what a reader should know first: wrong images, failures, where throughput ends, and what limits it."""
    found = rungs(report)
    measured = [rung for rung in found if rung["requests"]]
    if not measured:
        return ["No request ended in any rung."]
    are_equal = len(measured) > 1 and len({load(rung) for rung in measured}) == 1
    lines = _changes(measured) if are_equal else []
    if is_open_loop(report):
        lines += _open(measured)
    elif not are_equal:
        lines += _closed(sorted(measured, key=load))
    are_checked = report["figures"]["workload"].get("checks_images", True)
    unchecked = [] if are_checked else ["Images were not checked: a wrong one counts as a success."]
    interrupted = [rung for rung in found if rung.get("is_interrupted")]
    return [
        *(f"{rung['name']} was interrupted after {seconds(rung['seconds'])}." for rung in interrupted),
        *unchecked,
        *_wrong(measured),
        *_failures(measured),
        *_throttles(measured),
        *lines,
        *_device(measured),
    ]


def _wrong(found: Sequence[Rung]) -> list[str]:
    wrong = sum(rung["wrong_images"] for rung in found)
    return [f"Wrong images: {whole(wrong)}. They count as failures."] if wrong else []


def _failures(found: Sequence[Rung]) -> list[str]:
    failing = [rung for rung in found if rung["success_percent"] < 100]
    if not failing:
        return ["Every request succeeded."]
    first, worst = failing[0], min(failing, key=lambda rung: float(rung["success_percent"]))
    text = f"Requests begin to fail at {first['name']} ({percent(first['success_percent'])} succeed)"
    if worst is not first:
        text += f"; the worst rung is {worst['name']} with {percent(worst['success_percent'])}"
    most = max(worst["errors"].items(), key=lambda pair: int(pair[1]), default=None)
    return [f"{text}. Most frequent there: {error_line(most[0])} ({whole(most[1])} times)." if most else f"{text}."]


def _throttles(found: Sequence[Rung]) -> list[str]:
    answers = sum(rung["throttled"]["answers"] for rung in found)
    gave_up = sum(rung["throttled"]["gave_up"] for rung in found)
    if not answers:
        return []
    end = f"{whole(gave_up)} requests gave up" if gave_up else "no request gave up"
    return [f"The server asked {whole(answers)} times to come back later (429 or 503); {end}."]


def _changes(found: Sequence[Rung]) -> list[str]:
    """Tell what changes with time, from rungs of equal load."""
    first, last = found[0], found[-1]
    lines = []
    before, after = first["latency_s"]["p95"], last["latency_s"]["p95"]
    if before and after:
        change = 100 * (after / before - 1)
        times = f"from {seconds(before)} in the first rung to {seconds(after)} in the last"
        lines.append(f"p95 {_grows(change)} by {abs(change):.1f} %, {times}.")
    start, end = server_figure(first, "rss_mb", "start"), server_figure(last, "rss_mb", "end")
    if start is not None and end is not None:
        sizes = f"from {megabytes(start)} to {megabytes(end)}"
        lines.append(f"The server's memory {_grows(end - start)} by {megabytes(abs(end - start))}, {sizes}.")
    return lines


def _grows(change: float) -> str:
    return "falls" if change < 0 else "grows"


def _closed(found: Sequence[Rung]) -> list[str]:
    """Tell where the throughput of users who wait for their answers ends; rungs in the order of their users."""
    best = max(rung["achieved_per_s"] for rung in found)
    if len(found) == 1 or not best:
        return [f"{compact(best)} images/s at {found[0]['name']}; one rung does not show where throughput ends."]
    knee = next(rung for rung in found if rung["achieved_per_s"] >= SATURATED * best)
    last = found[-1]
    if last["achieved_per_s"] < COLLAPSED * best:
        return [
            f"Throughput collapses: {compact(best)} images/s at {_at(found, best)['name']}, "
            f"{compact(last['achieved_per_s'])} at {last['name']}."
        ]
    if knee is last and last["achieved_per_s"] > GROWTH * found[-2]["achieved_per_s"]:
        return [
            f"Not saturated: throughput still grows at {last['name']} ({compact(best)} images/s). "
            "Add rungs to see where it ends."
        ]
    pairs = [(name, knee["latency_s"][name], last["latency_s"][name]) for name in ("p50", "p95")]
    wait = joined([f"{name} from {seconds(a)} to {seconds(b)}" for name, a, b in pairs if a and b])
    more = (
        ""
        if knee is last or not wait
        else f" More users only wait longer: with {last['name']} latency goes up, {wait}."
    )
    return [f"Saturated at {knee['name']}: about {compact(best)} images/s.{more}"]


def _open(found: Sequence[Rung]) -> list[str]:
    """Tell which of the offered rates the server keeps up with."""
    behind = [rung for rung in found if rung["achieved_per_s"] < KEPT_UP * rung["offered_per_s"] * _in_time(rung)]
    late = _late(found)
    if not behind:
        return [*late, f"The server keeps up with every rate, up to {max(found, key=load)['name']}."]
    first = min(behind, key=load)
    return [
        *late,
        f"The queue grows from {first['name']} on: {compact(first['offered_per_s'])} images/s are asked for, "
        f"{compact(first['achieved_per_s'])} arrive. Latency there depends on how long the rung lasts.",
    ]


def _late(found: Sequence[Rung]) -> list[str]:
    """Tell whether the load generator, rather than the server, was too slow."""
    for rung in found:
        late, latency = rung["late_s"]["p95"], rung["latency_s"]["p50"]
        if late is not None and latency is not None and late > LATE * latency:
            return [
                f"The load generator was too slow from {rung['name']} on: it sent 5 % of the requests more than "
                f"{seconds(late)} late, which counts as latency. Give it a processor of its own."
            ]
    return []


def _in_time(rung: Rung) -> float:
    """Return the share of a steady rate's images that can arrive before the rung ends.

    Images of the warm-up make up for those that arrive too late, unless latency is longer than the warm-up.
    """
    warmup = float(rung.get("warmup_s", 0.0))
    late = max(float(rung["latency_s"]["p50"] or 0.0) - warmup, 0.0)
    return max(1 - late / (float(rung["seconds"]) - warmup), 0.0)


def _device(found: Sequence[Rung]) -> list[str]:
    """Tell whether requests wait for the devices, in the last rung with the highest load."""
    last = max(reversed(found), key=load)
    queue, drawing = last["queue_s"]["p50"], last["drawing_s"]["p50"]
    lines = []
    if queue is not None and drawing is not None:
        lines.append(
            f"At {last['name']} the median request waits {seconds(queue)} in the queue and is drawn in "
            f"{seconds(drawing)}."
        )
    busy = server_figure(last, "busy_percent")
    are_queueing = queue is not None and drawing is not None and queue > drawing
    if busy is not None and busy >= BUSY:
        lines.append(f"The devices limit: they spend {percent(min(busy, 100))} of the time in forward passes.")
    elif busy is not None and are_queueing:
        lines.append(
            f"Requests queue although the devices spend only {percent(busy)} of the time in forward passes: prompts, "
            "decoding and other work on the same processor take the rest."
        )
    elif busy is not None and busy < IDLE:
        lines.append(
            f"The devices do not limit: they spend {percent(busy)} of the time in forward passes. The rest is other "
            "stages, the server, the clients, or idle time."
        )
    return lines


def _at(found: Sequence[Rung], rate: float) -> Rung:
    return next(rung for rung in found if rung["achieved_per_s"] == rate)
