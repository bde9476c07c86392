"""One fault while clients work, and the account of it: what was accepted, how it ended, and how long that took."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.fleet import faults, records
from benchmarks.fleet.accounting import Accounts
from benchmarks.fleet.client import Client
from benchmarks.fleet.faults import Fault
from benchmarks.fleet.recovery import Recovery
from benchmarks.fleet.site import SIDE, Site
from benchmarks.fleet.timed_loop import HANG_PROMPT, KILL_PROMPT
from benchmarks.fleet.visits import MIXED, poll, visit

DEADLY = {"deadly_prompt": KILL_PROMPT, "hanging_prompt": HANG_PROMPT}
SETTLE_SECONDS = 60.0  # after the last client's answer
BOUND = 60.0  # seconds after a fault in which all that was under way must end
MAX_COUNT = 2  # images of a request


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a case before its fault and after it was mended."""

    before: float = 5.0
    after: float = 10.0


class Clients:
    """Clients that visit the replicas until they are told to stop."""

    def __init__(self, site: Site, keys: Sequence[str], accounts: Accounts, seed: int) -> None:
        self.accounts = accounts
        self._clients = [
            Client(site.deployment.urls, key, accounts, seed * len(keys) + number) for number, key in enumerate(keys)
        ]
        self._is_stopping = False
        self._running: list[asyncio.Task[None]] = []
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> "Clients":
        for client in self._clients:
            await self._opened.enter_async_context(client)
            self._running.append(asyncio.create_task(self._run(client)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._opened.aclose()

    async def finish(self) -> None:
        """Let every client finish its visit."""
        self._is_stopping = True
        await asyncio.gather(*self._running)

    async def send_deadly(self, prompt: str) -> None:
        """Send a job that ends every worker that draws it: it must fail by name."""
        client = self._clients[0]
        request = client.new_request(size=SIDE, prompt=prompt)
        await visit(client, request, poll)
        if request.outcome != "worker_lost":
            self.accounts.break_promise("deadly job without its end", f"{request.job}: {request.outcome}")

    async def _run(self, client: Client) -> None:
        while not self._is_stopping:
            request = client.new_request(size=SIDE, count=client.rng.randint(1, MAX_COUNT))
            await visit(client, request, client.rng.choice(MIXED))


async def run_case(site: Site, name: str, keys: Sequence[str], seed: int, pace: Pace) -> dict[str, Any]:
    """Cause one fault while clients work; return the figures.

    Args:
        name: of the fault, in `faults.ALL` or DEADLY.
    """
    accounts, known = Accounts(), set(await asyncio.to_thread(records.read, site.urls.database))
    async with Clients(site, keys, accounts, seed) as clients:
        await asyncio.sleep(pace.before)
        began = time.monotonic()
        if name in DEADLY:
            await clients.send_deadly(DEADLY[name])
        else:
            await faults.ALL[name](site, random.Random(seed))
        mended = time.monotonic()
        await asyncio.sleep(pace.after)
        await clients.finish()
    recovery = Recovery.of(name, began, mended, accounts.requests)
    if recovery.all_ended > BOUND:
        accounts.break_promise("late", f"the last job under way ended {recovery.all_ended:.1f} s after the fault")
    await settle(site, accounts)
    everything = await asyncio.to_thread(records.read, site.urls.database)
    counted = records.check({job: record for job, record in everything.items() if job not in known}, accounts)
    return figures(accounts) | {"recovery": asdict(recovery), "records": counted}


async def storm(
    site: Site, chosen: Iterable[Fault], keys: Sequence[str], seed: int, pause: tuple[float, float]
) -> tuple[dict[str, Any], list[Recovery]]:
    """Cause one fault after the other while clients work; return the figures and the recovery from each fault.

    A job that was hit by several faults may end as `worker_lost`.

    Args:
        pause: shortest and longest time before a fault, seconds.
    """
    accounts, rng = Accounts(may_fail=("worker_lost",)), random.Random(seed)
    windows: list[tuple[str, float, float]] = []
    memory: Counter[str] = Counter()
    async with Clients(site, keys, accounts, seed) as clients:
        for fault in chosen:
            await asyncio.sleep(rng.uniform(*pause))
            memory |= site.memory()
            began = time.monotonic()
            await fault(site, rng)
            windows.append((fault.__name__, began, time.monotonic()))
        await clients.finish()
    await settle(site, accounts)
    counted = records.check(await asyncio.to_thread(records.read, site.urls.database), accounts)
    ends = [*(began for _, began, _ in windows[1:]), math.inf]
    recoveries = [Recovery.of(*window, accounts.requests, end) for window, end in zip(windows, ends, strict=True)]
    return figures(accounts) | {"records": counted, "largest_mib": dict(memory)}, recoveries


async def settle(site: Site, accounts: Accounts) -> None:
    """Wait until all processes serve and every job has ended, as cancelled ones may after their clients left."""
    await site.deployment.wait_until_ready()
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := await asyncio.to_thread(records.unfinished_jobs, site.urls.database):
        if time.monotonic() > deadline:
            accounts.break_promise("jobs without an end", f"{len(left)} after {SETTLE_SECONDS:.0f} s: {left[:3]}")
            return
        await asyncio.sleep(0.5)


def figures(accounts: Accounts) -> dict[str, Any]:
    """Return what the clients have seen."""
    return {
        "requests": len(accounts.requests),
        "outcomes": dict(sorted(accounts.outcomes.items())),
        "answers": dict(sorted(accounts.statuses.items())),
        "images_compared": accounts.images,
        "broken": dict(accounts.broken),
        "notes": accounts.notes,
    }
