"""What HTTP costs: a request through `zimage-serve` against the engine alone, one at a time and kept full.

Server, engine alone and clients are processes of their own and take turns in short rounds, so that a machine that
slows down slows down both sides. The clients share the machine's cores with the server; what they take is measured.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.harness.distribution import Distribution
from benchmarks.harness.report import finish
from benchmarks.harness.subprocess_client import Companion
from benchmarks.load.served import Served
from benchmarks.load.soak import Crowd, print_soak, soak
from benchmarks.load.traffic import PROMPTS, cases, rate

WARM = 1.0  # seconds of each round that do not count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="what build-engines --output wrote")
    parser.add_argument("--sizes", type=_sides, default=[64, 128, 256], metavar="N,...", help="default: 64,128,256")
    parser.add_argument("--pairs", type=int, default=40, help="pictures one at a time; default: %(default)s")
    parser.add_argument("--clients", type=int, default=32, help="at once; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="of both sides in turn; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each side, all rounds; default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=0, help="of the engine on both sides, 0 for one per core; default: %(default)s"
    )
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS", help="then so long; default: %(default)s")
    parser.add_argument("--users", type=int, default=50, help="of the soak; default: %(default)s")
    parser.add_argument("--think", type=float, default=0.0, help="mean seconds of a user; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    # of a loaded machine, ratios are worth little
    figures: dict[str, Any] = {"load_average": os.getloadavg()[0], "threads": args.threads}
    with (
        Companion("benchmarks.load.bare_loop", [str(args.engines), str(args.threads)]) as bare,
        Companion("benchmarks.load.http_clients") as clients,
    ):
        with Served(args.engines, args.threads) as served:
            for size in args.sizes:
                alone = overhead(served, bare, clients, size, args.pairs)
                full = throughput(served, bare, clients, size, args.clients, args.rounds, args.seconds)
                figures[f"{size}x{size}"] = alone | full
                _print(size, figures[f"{size}x{size}"])
        if args.soak:
            crowd = Crowd(tuple(args.sizes), args.users, args.soak, args.think)
            figures["soak"] = soak(args.engines, args.threads, bare, clients, crowd)
            print_soak(figures["soak"])
    finish("http", figures)


def overhead(served: Served, bare: Companion, clients: Companion, size: int, pairs: int) -> dict[str, Any]:
    """One picture at a time: seconds through HTTP, and of the same picture drawn by the engine alone just before.

    What HTTP adds is the rest of a request after what the engine took for it, which no change of the machine's speed
    between two pictures alters; against the engine alone, it includes how much the server slows that down.
    """
    through, engine, encode, added = [], [], [], []
    for case in islice(cases(size), len(PROMPTS) + pairs):
        alone = bare.ask("draw", prompt=case.prompt, size=size, seed=case.seed)
        engine.append(alone["engine_s"])
        encode.append(alone["encode_s"])
        asked = clients.ask("draw", url=served.url, prompt=case.prompt, size=size, seed=case.seed)
        through.append(asked["seconds"])
        added.append(asked["seconds"] - asked["engine_s"])
    first = len(PROMPTS)  # these encode prompts
    through, engine, encode, added = (times[first:] for times in (through, engine, encode, added))
    return {
        "http_s": _of(through),
        "engine_s": _of(engine),
        "encode_p50_s": statistics.median(encode),
        "overhead_p50_s": statistics.median(added),
        "against_alone_p50_s": statistics.median(a - b for a, b in zip(through, engine, strict=True)),
    }


def throughput(
    served: Served, bare: Companion, clients: Companion, size: int, count: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Pictures a second with `count` under way at any time."""
    load = {"size": size, "clients": count, "warm": WARM, "seconds": seconds / rounds}
    alone, through = [], []
    cpu: dict[str, list[float]] = {}  # seconds a picture
    for _ in range(rounds):
        answer = bare.ask("fill", **load)
        alone.append(rate(answer["ended"]))
        cpu.setdefault("bare loop", []).append(answer["cpu_s"] / answer["pictures"])
        before = served.cpu_seconds()
        answer = clients.ask("fill", url=served.url, **load)
        served.settle()
        through.append(rate(answer["ended"]))
        spent = {name: after - before[name] for name, after in served.cpu_seconds().items()}
        for name, cost in (spent | {"clients": answer["cpu_s"]}).items():
            cpu.setdefault(name, []).append(cost / answer["pictures"])
    ratios = [b / a for a, b in zip(alone, through, strict=True)]
    return {
        "bare_per_s": statistics.median(alone),
        "http_per_s": statistics.median(through),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_s_per_picture": {name: statistics.median(each) for name, each in cpu.items()},
    }


def _of(seconds: Sequence[float]) -> dict[str, float | None]:
    found = Distribution.of(seconds)
    return {"p50": found.p50, "p95": found.p95}


def _print(size: int, row: dict[str, Any]) -> None:
    costs = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in row["cpu_s_per_picture"].items())
    http, engine = (row[name]["p50"] * 1e3 for name in ("http_s", "engine_s"))
    drawn, alone = row["http_per_s"], row["bare_per_s"]
    added, more, encode = (row[name] * 1e3 for name in ("overhead_p50_s", "against_alone_p50_s", "encode_p50_s"))
    print(
        f"{size}x{size}, one at a time: {http:.1f} ms, of which HTTP {added:.1f} with encoding, {encode:.1f}\n"
        f"  the engine alone: {engine:.1f} ms, {more:.1f} less\n"
        f"  kept full: {drawn:.2f} pictures/s through HTTP, {alone:.2f} the engine: {row['ratio']:.1%}\n"
        f"  processor time of a picture, ms: {costs}",
        flush=True,
    )


def _sides(text: str) -> list[int]:
    return [int(side) for side in text.split(",")]
