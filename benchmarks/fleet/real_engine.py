"""A real engine in one worker and in two: throughput, and every image against the engine's own."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.faults.accounting import Accounts
from benchmarks.faults.cases import Case, ordinary
from benchmarks.faults.client import Client
from benchmarks.fleet.deployment import Deployment, Setup
from benchmarks.fleet.stand_in_measurements import KEYS, PER_WORKER, Mode, started
from benchmarks.harness.rate import rate


def compare(
    engines: Path, accounts: Accounts, mode: Mode, workers: Sequence[int], seconds: float
) -> dict[int, dict[str, Any]]:
    """Return images per second by number of workers, each with one thread."""
    found = {}
    for number in workers:
        with TemporaryDirectory() as temporary:
            setup = Setup(engines, Path(temporary), KEYS, is_stand_in=False)
            with started(setup, mode, number) as deployment:
                found[number] = {"images_per_s": asyncio.run(_measure(deployment, accounts, number, seconds))}
    return found


async def _measure(deployment: Deployment, accounts: Accounts, workers: int, seconds: float) -> float:
    """Ask for images of all sizes, one after the other from each client."""
    until, ended = time.monotonic() + seconds, list[float]()

    async def repeat(number: int) -> None:
        cases: list[Case] = ordinary()
        async with Client(deployment.urls[0], KEYS[number % len(KEYS)], cases, accounts, seed=number) as client:
            while time.monotonic() < until:
                response = await client.images(client.case())
                if response.status_code != 200:
                    accounts.break_promise("no image", response.text)
                ended.append(time.monotonic())

    await asyncio.gather(*map(repeat, range(PER_WORKER * workers)))
    return rate([at for at in ended if at <= until])
