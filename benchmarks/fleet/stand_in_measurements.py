"""Measurements with the stand-in engine: the cost of a job, throughput, passes that replicas share."""

import asyncio
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from benchmarks.fleet.accounting import Accounts, Request
from benchmarks.fleet.client import Client
from benchmarks.fleet.deployment import Deployment, Setup, SharedUrls, embedded, fleet
from benchmarks.fleet.plans import write_plans
from benchmarks.fleet.visits import ask, visit
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.rate import rate
from benchmarks.services.postgres import PostgreSql
from benchmarks.services.rabbitmq import RabbitMq
from benchmarks.services.redis import Redis
from engine.scheduler.batch_table import PassTimes

Mode = Literal["embedded", "redis", "rabbitmq"]
STEPS = 4
LARGE, SMALL, SHARED = 128, 64, 256  # sides of images: for throughput, for the cost of a job, for batches
LARGE_PASS, SMALL_PASS = 0.25, 0.025  # seconds: a second per image, as Z-Image-Turbo on a large GPU, and a tenth
SHARED_PASS = (0.1, 0.105, 0.11, 0.115)  # seconds by batch: four images cost little more than one
PER_WORKER = 3  # requests in flight
FIRST = 5  # requests before those that are measured
BATCH = re.compile(r"^zimage_forward_batch_size_(sum|count)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
KEYS = [f"client-{number}" for number in range(8)]


@contextmanager
def deployed(mode: Mode, workers: int, replicas: int = 1) -> Iterator[Deployment]:
    """Run servers of a mode: workers on a device each, in a fleet each on a host of its own."""
    times = (
        PassTimes(SMALL, SMALL, (SMALL_PASS,)),
        PassTimes(LARGE, LARGE, (LARGE_PASS,)),
        PassTimes(SHARED, SHARED, SHARED_PASS),
    )
    with TemporaryDirectory() as temporary:
        plans = write_plans(Path(temporary) / "plans", times)
        with started(Setup(plans, Path(temporary), KEYS), mode, workers, replicas) as deployment:
            yield deployment


@contextmanager
def started(setup: Setup, mode: Mode, workers: int, replicas: int = 1) -> Iterator[Deployment]:
    """Run servers of a mode, in a fleet with a broker and a database of its own."""
    if mode == "embedded":
        with embedded(setup, workers) as deployment:
            yield deployment
        return
    with PostgreSql() as database, (Redis if mode == "redis" else RabbitMq)() as broker:
        urls = SharedUrls(broker.fresh_url(), database.fresh_url())
        with fleet(setup, urls, replicas, workers) as deployment:
            yield deployment


async def cost(deployment: Deployment, accounts: Accounts, requests: int) -> dict[str, Any]:
    """Return the seconds of a request beyond those of its passes: one client, one request at a time."""
    async with Client(deployment.urls, KEYS[0], accounts, seed=1, steps=STEPS) as client:
        sent = []
        for _ in range(FIRST + requests):
            sent.append(client.new_request(size=SMALL))
            await visit(client, sent[-1], ask)
    seconds = [(request.ended or 0.0) - request.started - STEPS * SMALL_PASS for request in sent[FIRST:]]
    found = Distribution.of(seconds)
    return {"requests": found.runs, "p50_s": found.p50, "p95_s": found.p95, "slowest_s": found.slowest}


async def throughput(
    deployment: Deployment, accounts: Accounts, workers: int, seconds: float, warm_up: float
) -> dict[str, float]:
    """Return images per second while every worker always has more to draw, and the ratio to the engine alone.

    Linear is the number of workers times the rate of an engine alone, which follows from its pass times.
    """
    sent = await _load(deployment, accounts, PER_WORKER * workers, LARGE, warm_up + seconds)
    began = sent[0].started + warm_up
    ended = [request.ended for request in sent if request.outcome == "done" and request.ended is not None]
    per_second = rate([at for at in ended if began <= at <= began + seconds])
    return {"images_per_s": per_second, "of_linear": per_second * STEPS * LARGE_PASS / workers}


async def shared_passes(deployment: Deployment, accounts: Accounts, seconds: float) -> dict[str, Any]:
    """Return the images per pass of one worker whose clients are at different replicas, two at each.

    Two images of one replica could share a pass; more than two are of both.
    """
    assert len(deployment.hosts) == 1
    before = _passes(deployment.hosts[0].url)
    clients = 2 * len(deployment.replicas)
    await _load(deployment, accounts, clients, SHARED, seconds, is_at_one_replica=True)
    counted = _passes(deployment.hosts[0].url) - before
    return {"clients": clients, "passes": counted["count"], "images_per_pass": counted["sum"] / counted["count"]}


async def _load(
    deployment: Deployment,
    accounts: Accounts,
    clients: int,
    side: int,
    seconds: float,
    *,
    is_at_one_replica: bool = False,
) -> list[Request]:
    """Let clients ask for one image after the other; return their requests."""
    until, first = time.monotonic() + seconds, len(accounts.requests)

    async def repeat(number: int) -> None:
        urls = deployment.urls
        urls = [urls[number % len(urls)]] if is_at_one_replica else urls
        async with Client(urls, KEYS[number % len(KEYS)], accounts, seed=100 + number, steps=STEPS) as client:
            while time.monotonic() < until:
                await visit(client, client.new_request(size=side), ask)

    await asyncio.gather(*map(repeat, range(clients)))
    return accounts.requests[first:]


def _passes(url: str) -> Counter[str]:
    """Return the "count" of a worker host's passes and the "sum" of their batches."""
    found: Counter[str] = Counter()
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        for name, value in BATCH.findall(response.read().decode()):
            found[name] += int(float(value))
    return found
