"""Throughput of 1, 2, 4 and 8 workers, and what a job costs beside drawing, embedded and over each broker.

The engine is a timed stand-in: workers are real processes that sleep where a GPU would compute, so that two cores
can feed eight of them. With plans of a real engine, two workers are compared with one as well, and every image is
compared with the engine's own.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.faults.accounting import Accounts as ImageAccounts
from benchmarks.faults.cases import generate_all
from benchmarks.fleet.accounting import Accounts
from benchmarks.fleet.real_engine import compare
from benchmarks.fleet.stand_in_measurements import (
    LARGE_PASS,
    STEPS,
    Mode,
    cost,
    deployed,
    shared_passes,
    throughput,
)
from benchmarks.harness.arguments import count, positive
from benchmarks.harness.report import finish

MODES: tuple[Mode, ...] = get_args(Mode)
LEAST = {"embedded": 0.97, "redis": 0.95, "rabbitmq": 0.95}  # of linear
WARM_UP = 5.0  # seconds
REAL_WORKERS = (1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="Ways to run jobs (default: all)")
    parser.add_argument(
        "--workers", nargs="+", type=count, default=[1, 2, 4, 8], help="Numbers of workers (default: 1 2 4 8)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=40.0, help="Duration of each throughput measurement (default: %(default)g)"
    )
    parser.add_argument(
        "--requests", type=count, default=200, help="Requests that measure the cost of a job (default: %(default)s)"
    )
    parser.add_argument(
        "--engines", type=Path, metavar="DIR", help="Plans, to compare two workers with one with the real engine too"
    )


def run(args: argparse.Namespace) -> None:
    """Measure every mode and number of workers; exit with 1 if a promise was broken."""
    modes: dict[str, Any] = {}
    load_average = os.getloadavg()[0]  # ratios measured on a busy machine mean little
    images = ImageAccounts(generate_all(args.engines, {}, threads=1)) if args.engines else None
    for mode in args.modes:
        modes[mode] = measure(mode, args.workers, args.seconds, args.requests, WARM_UP)
        if images is not None:
            modes[mode]["real"] = compare(args.engines, images, mode, REAL_WORKERS, args.seconds)
        _print(mode, modes[mode])
    broken = [kind for found in modes.values() for kind in found["broken"]]
    figures = {"load_average": load_average, "pass_s": LARGE_PASS, "steps": STEPS, "modes": modes}
    if images is not None:
        print(f"real engine: {images.images} images compared; broken promises: {dict(images.broken) or 'none'}")
        broken += images.broken
        figures["real"] = {"images": images.images, "broken": dict(images.broken), "notes": images.notes}
    finish("scaling", figures)
    if broken:
        sys.exit(1)


def measure(mode: Mode, workers: Sequence[int], seconds: float, requests: int, warm_up: float) -> dict[str, Any]:
    """Return the cost of a job of one mode, its throughput by number of workers, and in a fleet the shared passes."""
    accounts = Accounts()
    figures: dict[str, Any] = {"workers": {}}
    for number in workers:
        with deployed(mode, number) as deployment:
            if "cost" not in figures:
                figures["cost"] = asyncio.run(cost(deployment, accounts, requests))
            figures["workers"][number] = asyncio.run(throughput(deployment, accounts, number, seconds, warm_up))
        if (found := figures["workers"][number]["of_linear"]) < LEAST[mode]:
            accounts.break_promise("does not scale", f"{number} workers: {found:.3f} of linear, not {LEAST[mode]}")
    if mode != "embedded":
        with deployed(mode, workers=1, replicas=2) as deployment:
            figures["shared_passes"] = asyncio.run(shared_passes(deployment, accounts, seconds / 2))
    return figures | {"images": accounts.images, "broken": dict(accounts.broken), "notes": accounts.notes}


def _print(mode: Mode, figures: dict[str, Any]) -> None:
    job = figures["cost"]
    p95 = job["p95_s"] or job["slowest_s"]
    print(f"{mode}: a job costs {job['p50_s'] * 1e3:.1f} ms beside drawing (p50), {p95 * 1e3:.1f} ms (p95)")
    for number, row in figures["workers"].items():
        print(f"  {number} workers: {row['images_per_s']:.3f} images/s, {row['of_linear']:.3f} of linear")
    if shared := figures.get("shared_passes"):
        print(f"  2 replicas, 1 worker, {shared['clients']} clients: {shared['images_per_pass']:.2f} images per pass")
    for number, row in figures.get("real", {}).items():
        print(f"  real engine, {number} workers of one thread: {row['images_per_s']:.3f} images/s")
    print(f"  {figures['images']} images compared; broken promises: {figures['broken'] or 'none'}", flush=True)
    for note in figures["notes"]:
        print(f"    {note}")
