"""Reports of `zimage-bench load` written by hand: a server that saturates, and rungs with anything changed."""

import copy
from collections.abc import Mapping
from typing import Any

NONE = {"p50": None, "p95": None, "p99": None, "mean": None, "max": None}
KIND = {"name": "square", "weight": 1.0, "width": 128, "height": 128, "steps": None, "lora": None}


def spread(median: float, factor: float = 1.0) -> dict[str, float | None]:
    """Return percentiles around a median."""
    scaled = median * factor
    return {"p50": scaled, "p95": scaled * 1.8, "p99": scaled * 2.2, "mean": scaled * 1.1, "max": scaled * 2.6}


def rung(users: int | None = 10, rate: float | None = None, **changes: Any) -> dict[str, Any]:
    """Return a rung of one minute at a server that makes 12 images per second, with some values replaced."""
    asked = (users or 0) / 1.08 if rate is None else rate
    per_second = min(asked, 12.0)
    median = max(0.08, (users or 1) / 12.0 - 0.5)
    found: dict[str, Any] = {
        "users": users,
        "rate": rate,
        "seconds": 60.0,
        "requests": int(per_second * 54),
        "images": int(per_second * 54),
        "success_percent": 100.0,
        "offered_per_s": per_second if rate is None else rate,
        "achieved_per_s": per_second,
        "latency_s": spread(median),
        "late_s": spread(0.001),
        "first_byte_s": spread(median, 0.97),
        "first_preview_s": None,
        "queue_s": spread(max(median - 0.07, 0.002)),
        "drawing_s": spread(0.07),
        "throttled": {"answers": 0, "honoured": 0, "gave_up": 0, "retry_after_s": NONE},
        "errors": {},
        "wrong_images": 0,
        "by_kind": {"square": {"requests": 100, "success_percent": 100.0, "latency_s": spread(median)}},
        "timeline": [
            {"at_s": float(at), "images": int(per_second) + at % 3, "p50_s": median * (1 + at % 5 / 10)}
            | {"p95_s": None, "errors": 0, "throttled": 0}
            for at in range(60)
        ],
        "histogram": [
            {"up_to_s": median * 10 ** (step / 10), "count": count}
            for step, count in enumerate((3, 9, 20, 30, 12, 2), -3)
        ],
        "server": {
            "rss_mb": {"start": 400.0, "end": 410.0 + (users or 0), "max": 420.0 + (users or 0)},
            "batch": {"mean": 1.5, "counts": {"1": 50, "2": 50}},
            "pass_s": {"all": {"1": 0.01, "2": 0.018}},
            "stage_s": {"encode": 0.002},
            "busy_percent": min(per_second * 8, 99.0),
            "gpus": [],
            "missed": 0,
        },
    }
    return found | changes


def report(*rungs: Mapping[str, Any], name: str = "zimage-serve", **changes: Any) -> dict[str, Any]:
    """Return a report of these rungs, with some of its figures replaced."""
    is_open = bool(rungs) and rungs[0]["users"] is None
    figures = {
        "target": {"url": "http://127.0.0.1:8000", "endpoint": "images", "server": {"model": "nano"}, "name": name},
        "workload": {"mix": [KIND], "loop": "open" if is_open else "closed", "think_s": 1.0, "scenario": "ladder"},
        "rungs": copy.deepcopy(list(rungs)),
        "objectives": [],
    }
    hardware = {"cpu": "Some Processor", "cores": 2, "memory_gb": 8.0}
    return {"benchmark": "load", "figures": figures | changes, "hardware": hardware, "versions": {"python": "3.11"}}


def ladder(**changes: Any) -> dict[str, Any]:
    """Return a report of the ladder of 1 to 50 users."""
    return report(*(rung(users) for users in (1, 5, 10, 20, 30, 50)), **changes)


def soak(*p95: float) -> dict[str, Any]:
    """Return a report of rungs of 10 users with these 95th percentiles, whose server's memory grows by 50 MB each."""
    rungs = []
    for number, slowest in enumerate(p95):
        one = rung(10, latency_s=spread(0.4) | {"p95": slowest})
        one["server"]["rss_mb"] = {"start": 400.0 + 50 * number, "end": 450.0 + 50 * number, "max": 470.0 + 50 * number}
        rungs.append(one)
    return report(*rungs)


def collapse() -> dict[str, Any]:
    """Return a report of a server that loses the more requests the more come."""
    rungs = []
    for users in (1, 5, 10, 20, 30, 50):
        lost = max(0, users - 10) * 2
        changed: dict[str, Any] = {"success_percent": 100.0 - lost / 2, "achieved_per_s": max(6.0 - users / 10, 0.4)}
        if lost:
            changed["errors"] = {"no answer within 60 s": lost, "ConnectionResetError: reset by peer": 2}
        one = rung(users, **changed)
        for moment in one["timeline"][5::7]:
            moment["errors"] = lost // 6
            moment["throttled"] = users // 20
        one["latency_s"] = spread(users * 0.6)
        one["histogram"] = [bucket | {"up_to_s": bucket["up_to_s"] * 5} for bucket in one["histogram"]]
        one["server"] = None
        rungs.append(one)
    return report(*rungs, name="blocking FastAPI")
