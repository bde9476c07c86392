"""Throughput of 1, 2, 4 and 8 workers, and what a job costs beside drawing, embedded and over each broker.

The engine is a timed stand-in: workers are real processes that sleep where a GPU would compute, so that two cores
can feed eight of them. Linear is the number of workers times the rate at which the engine alone draws, which follows
from its pass times. With plans of a real engine, two workers are compared with one, and every image is compared with
the engine's own.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fleet.accounting import Accounts
from benchmarks.fleet.client import Client
from benchmarks.fleet.deployment import Deployment, Links, Setup, embedded, fleet
from benchmarks.fleet.plans import write_plans
from benchmarks.fleet.visits import ask, visit
from benchmarks.harness.arguments import count, positive
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.report import finish
from benchmarks.load.traffic import rate
from benchmarks.services.postgres import PostgreSql
from benchmarks.services.rabbitmq import RabbitMq
from benchmarks.services.redis import Redis
from engine.scheduler.batch_table import PassTimes

MODES = ("embedded", "redis", "rabbitmq")
STEPS = 4
LARGE, SMALL = 128, 64  # sides of images: for throughput, and for the cost of a job
LARGE_PASS, SMALL_PASS = 0.25, 0.025  # seconds: a second per image, as Z-Image-Turbo on a large GPU, and a tenth
PER_WORKER = 3  # requests in flight
WARM_UP = 5.0  # seconds
LEAST = {"embedded": 0.97, "redis": 0.95, "rabbitmq": 0.95}  # of linear
KEYS = [f"client-{number}" for number in range(8)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="Ways to run jobs (default: all)")
    parser.add_argument(
        "--workers", nargs="+", type=count, default=[1, 2, 4, 8], help="Numbers of workers (default: 1 2 4 8)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=40.0, help="Time of each measured throughput (default: %(default)g)"
    )
    parser.add_argument(
        "--requests", type=count, default=200, help="Requests for the cost of a job (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure every mode and number of workers; print a table."""
    figures: dict[str, Any] = {}
    for mode in args.modes:
        figures[mode] = measure(mode, args.workers, args.seconds, args.requests)
        _print(mode, figures[mode])
    finish("scaling", {"pass_s": LARGE_PASS, "steps": STEPS, "modes": figures})


def measure(mode: str, workers: Sequence[int], seconds: float, requests: int) -> dict[str, Any]:
    """Return the cost of a job of one mode and its throughput by number of workers."""
    accounts = Accounts()
    figures: dict[str, Any] = {"workers": {}}
    for number in workers:
        with deployed(mode, number) as deployment:
            if number == min(workers):
                figures["cost"] = asyncio.run(cost(deployment, accounts, requests))
            per_second = asyncio.run(throughput(deployment, accounts, number, seconds))
        linear = number / (STEPS * LARGE_PASS)
        figures["workers"][number] = {"images_per_s": per_second, "of_linear": per_second / linear}
    figures |= {"images": accounts.images, "broken": dict(accounts.broken), "notes": accounts.notes}
    return figures


@contextmanager
def deployed(mode: str, workers: int) -> Iterator[Deployment]:
    """Run servers of a mode with a number of workers, each on a device of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        times = (PassTimes(SMALL, SMALL, (SMALL_PASS,)), PassTimes(LARGE, LARGE, (LARGE_PASS,)))
        plans = write_plans(Path(temporary) / "plans", times)
        setup = Setup(plans, Path(temporary), KEYS)
        if mode == "embedded":
            with embedded(setup, workers) as deployment:
                yield deployment
            return
        kind = Redis if mode == "redis" else RabbitMq
        with PostgreSql() as database, kind() as broker:
            links = Links(broker.fresh_url(), database.fresh_url())
            with fleet(setup, links, replicas=1, hosts=workers) as deployment:
                yield deployment


async def cost(deployment: Deployment, accounts: Accounts, requests: int) -> dict[str, Any]:
    """Return the seconds of a request beyond those of its passes: one client, one request at a time."""
    async with Client(deployment.urls, KEYS[0], accounts, seed=1, steps=STEPS) as client:
        sent = []
        for _ in range(requests + 5):
            sent.append(client.new_request(size=SMALL))
            await visit(client, sent[-1], ask)
    seconds = [(request.ended or 0.0) - request.started - STEPS * SMALL_PASS for request in sent[5:]]
    found = Distribution.of(seconds)
    return {"requests": found.runs, "p50_s": found.p50, "p95_s": found.p95, "slowest_s": found.slowest}


async def throughput(deployment: Deployment, accounts: Accounts, workers: int, seconds: float) -> float:
    """Return images per second while every worker always has more to draw."""
    began = time.monotonic() + WARM_UP
    until = began + seconds
    before = len(accounts.requests)

    async def repeat(number: int) -> None:
        key = KEYS[number % len(KEYS)]
        async with Client(deployment.urls, key, accounts, seed=100 + number, steps=STEPS) as client:
            while time.monotonic() < until:
                await visit(client, client.new_request(size=LARGE), ask)

    await asyncio.gather(*map(repeat, range(PER_WORKER * workers)))
    ended = [request.ended for request in accounts.requests[before:] if request.outcome == "done" and request.ended]
    return rate([at for at in ended if began <= at <= until])


def _print(mode: str, figures: dict[str, Any]) -> None:
    job = figures["cost"]
    p95 = job["p95_s"] or job["slowest_s"]
    print(f"{mode}: a job costs {job['p50_s'] * 1e3:.1f} ms beside drawing (p50), {p95 * 1e3:.1f} ms (p95)")
    for number, row in figures["workers"].items():
        print(f"  {number} workers: {row['images_per_s']:.3f} images/s, {row['of_linear']:.3f} of linear")
    print(f"  {figures['images']} images compared; broken promises: {figures['broken'] or 'none'}", flush=True)
    for note in figures["notes"]:
        print(f"    {note}")
