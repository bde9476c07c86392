"""A soak of `zimage-serve`: clients of every kind, floods and faults for many minutes, and accounts of all of it.

First a few ordinary clients and an innocent one, which times its small images. Then the storm: many clients that mix
all endpoints and hang up, a client that floods the queue, and faults: processes killed and stopped, clocks that jump.
At the end every accepted job has ended once, every image is the engine's own, memory and descriptors are where they
were, and the innocent client was served nearly as fast as before. The exit status is 1 if not.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import audit, samples
from benchmarks.faults.accounting import Accounts
from benchmarks.faults.actions import ACTIONS, Action, act, flood, plain
from benchmarks.faults.cases import FLOOD, INNOCENT, generate_all, ordinary, unusual
from benchmarks.faults.client import Client, ask_again_and_again
from benchmarks.faults.faults import FaultLog, cause_faults
from benchmarks.faults.samples import Sample
from benchmarks.faults.server import Server
from benchmarks.harness.arguments import count, count_or_zero, positive
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.report import finish
from engine.options import HELP

KEYS = [f"client-{number}" for number in range(6)]  # several clients share one
FLOODER, INNOCENT_KEY = "flooder", "innocent"
QUIET_CLIENTS = 6
QUIET_SHARE = 6  # one of so many parts of the time is quiet
SETTLE_SECONDS = 180.0
SLOWER = 2.0  # largest ratio of the innocent client's p95 in the storm and before
GROWTH = 1.25  # largest ratio of memory at the end and in the second quarter: by then all has been used once
MORE_DESCRIPTORS = 20  # at the end, than at the start


@dataclass(frozen=True, slots=True)
class Storm:
    """Options of a soak.

    Attributes:
        seconds: length, the quiet phase included.
        flood: jobs of one client that are unfinished at all times.
        pause: seconds between two faults, at least and at most.
    """

    seconds: float
    clients: int
    flood: int
    seed: int
    pause: tuple[float, float] = (8.0, 16.0)


@dataclass(frozen=True, slots=True)
class Phases:
    """Times of the phases, by time.monotonic()."""

    quiet: float
    storm: float
    end: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help=HELP["engines"])
    parser.add_argument("--loras", type=Path, metavar="DIR", help="Folder of LoRAs made by zimage-lora (default: none)")
    parser.add_argument("--minutes", type=positive, default=30.0, help="Length of the test (default: %(default)g)")
    parser.add_argument("--clients", type=count, default=32, help="Clients in the storm (default: %(default)s)")
    parser.add_argument(
        "--flood",
        type=count_or_zero,
        default=200,
        metavar="JOBS",
        help="Unfinished jobs of one client (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="Seed of all decisions (default: %(default)s)")
    parser.add_argument(
        "--threads", type=count_or_zero, default=0, help="CPU threads of the engine, 0 for one per core (default)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="Folder for database, archive and logs (default: none)"
    )


def run(args: argparse.Namespace) -> None:
    """Run the soak; exit with 1 if a promise was broken."""
    loras = {file.stem: file for file in sorted(args.loras.iterdir())} if args.loras else {}
    accounts = Accounts(generate_all(args.engines, loras, args.threads))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        server = Server(args.engines, args.loras, folder, [*KEYS, FLOODER, INNOCENT_KEY], args.threads)
        try:
            storm = Storm(args.minutes * 60, args.clients, args.flood, args.seed)
            figures = asyncio.run(soak(server, accounts, list(loras), storm))
        finally:
            server.stop()
    _print(figures)
    finish("soak", figures)
    if figures["broken"]:
        sys.exit(1)


async def soak(server: Server, accounts: Accounts, loras: list[str], storm: Storm) -> dict[str, Any]:
    """Run all phases; return the figures."""
    await server.start()
    faults, taken = FaultLog(), samples.take(server)
    sampling = asyncio.create_task(samples.sample(server, taken))
    try:
        async with AsyncExitStack() as opened:
            innocent, flooder, *others = await _open(opened, server, accounts, loras, storm)
            began = time.monotonic()
            until = began + storm.seconds / QUIET_SHARE
            ordinary_clients = _run_clients(others[:QUIET_CLIENTS], (plain,), until)
            await asyncio.gather(ask_again_and_again(innocent, INNOCENT, until), ordinary_clients)
            phases = Phases(began, time.monotonic(), time.monotonic() + storm.seconds * (1 - 1 / QUIET_SHARE))
            await asyncio.gather(
                ask_again_and_again(innocent, INNOCENT, phases.end),
                flood(flooder, FLOOD, storm.flood, phases.end),
                cause_faults(server, random.Random(storm.seed), faults, storm.pause, phases.end),
                _run_clients(others, ACTIONS, phases.end),
            )
            await _delete_flood(flooder)
        found = await _settle(server, accounts)
    finally:
        await _cancel(sampling)
    taken += samples.take(server)
    return _figures(server, accounts, faults, taken, phases) | found


async def _open(
    opened: AsyncExitStack, server: Server, accounts: Accounts, loras: list[str], storm: Storm
) -> list[Client]:
    """Open the innocent client, the flooding one, and the others, which share KEYS."""
    cases = ordinary()
    special = ((INNOCENT_KEY, INNOCENT), (FLOODER, FLOOD))
    clients = [Client(server.url, key, [case], accounts, storm.seed) for key, case in special]
    for number in range(storm.clients):
        asked = cases if number < QUIET_CLIENTS else cases + 4 * unusual(loras)
        clients.append(Client(server.url, KEYS[number % len(KEYS)], asked, accounts, storm.seed + number))
    return [await opened.enter_async_context(client) for client in clients]


async def _run_clients(clients: list[Client], actions: tuple[Action, ...], until: float) -> None:
    """Run clients until a time, and give requests that wait then as long as any other."""
    await asyncio.gather(*(act(client, actions, until) for client in clients))


async def _delete_flood(flooder: Client) -> None:
    """Cancel what is left of the flood."""
    for job in [job for job, case in flooder.accounts.accepted.items() if case == FLOOD]:
        if job not in flooder.accounts.ends and job not in flooder.accounts.deleted:
            await flooder.delete(job)


async def _settle(server: Server, accounts: Accounts) -> dict[str, Any]:
    """Wait until every job has ended; compare the server's records with the clients'."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := audit.unfinished(server.database)) and time.monotonic() < deadline:
        await asyncio.sleep(1.0)
    if left:
        accounts.break_promise("jobs without an end", f"{left} after {SETTLE_SECONDS:.0f} s")
    else:
        audit.check_counters(server.url, server.recovered, accounts)
    states = audit.check_database(server.database, accounts)
    return {"unfinished": left, "states": dict(states), "zombies": samples.zombies(server)}


def _figures(
    server: Server, accounts: Accounts, faults: FaultLog, taken: list[Sample], phases: Phases
) -> dict[str, Any]:
    """Return all figures; those that are too bad become broken promises."""
    minutes = (phases.end - phases.quiet) / 60
    figures: dict[str, Any] = {
        "minutes": round(minutes, 2),
        "accepted": len(accounts.accepted),
        "images": accounts.images,
        "outcomes": dict(sorted(accounts.outcomes.items())),
        "codes": dict(accounts.codes.most_common()),
        "faults": {name: faults.names.count(name) for name in sorted(set(faults.names))},
        "starts": server.starts,
        "innocent": _innocent(accounts, faults, phases),
        "server": samples.summary(taken, "server"),
        "worker": samples.summary(taken, "worker"),
        "log": audit.check_logs(server.logs, minutes, accounts),
        "missing_in_archive": audit.check_archive(server.archive, accounts),
    }
    for lost in accounts.lost:
        if not faults.overlaps(lost.started, lost.ended):
            accounts.break_promise("no answer without a fault", f"{lost.action}: {lost.error}")
    for process in ("server", "worker"):
        _check_growth(accounts, process, figures[process])
    return figures | {"broken": dict(accounts.broken), "notes": accounts.notes}


def _innocent(accounts: Accounts, faults: FaultLog, phases: Phases) -> dict[str, Any]:
    """Return the innocent client's times before the storm, in it, and in it without the requests that met a fault."""
    quiet = [end - start for start, end in accounts.innocent if end <= phases.storm]
    storm = [(start, end) for start, end in accounts.innocent if start >= phases.storm]
    calm = [end - start for start, end in storm if not faults.overlaps(start, end)]
    found = {
        "quiet": _times(quiet),
        "storm": _times([end - start for start, end in storm]),
        "storm_without_faults": _times(calm),
    }
    before, after = found["quiet"]["p95_s"], found["storm_without_faults"]["p95_s"]
    ratio = None if before is None or after is None else round(after / before, 2)
    if ratio is None or ratio > SLOWER:
        accounts.break_promise("the innocent client waits", f"p95 {before} s, in the storm {after} s")
    return found | {"p95_ratio": ratio}


def _times(seconds: list[float]) -> dict[str, Any]:
    if not seconds:
        return {"answers": 0, "p50_s": None, "p95_s": None}
    found = Distribution.of(seconds)
    p95 = None if found.p95 is None else round(found.p95, 3)
    return {"answers": found.runs, "p50_s": round(found.p50, 3), "p95_s": p95}


def _check_growth(accounts: Accounts, process: str, summary: dict[str, Any]) -> None:
    memory, descriptors = summary["mib"], summary["descriptors"]
    if memory["end"] > GROWTH * memory["quarters"][1]:
        accounts.break_promise("memory grows", f"{process}: {memory}")
    if descriptors["end"] > descriptors["start"] + MORE_DESCRIPTORS:
        accounts.break_promise("descriptors grow", f"{process}: {descriptors}")


async def _cancel(task: "asyncio.Task[None]") -> None:
    """Cancel a task that runs without end; raise its error if it has failed."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _print(figures: dict[str, Any]) -> None:
    innocent = figures["innocent"]
    print(f"{figures['minutes']} minutes, {figures['starts']} starts of the server, faults: {figures['faults']}")
    print(f"  {figures['accepted']} jobs accepted, {figures['unfinished']} without an end; stored: {figures['states']}")
    print(f"  {figures['images']} images compared; failures by code: {figures['codes']}")
    for name in ("quiet", "storm", "storm_without_faults"):
        row = innocent[name]
        print(f"  the innocent client, {name}: {row['answers']} answers, p50 {row['p50_s']} s, p95 {row['p95_s']} s")
    for process in ("server", "worker"):
        for name, row in figures[process].items():
            print(
                f"  {process}, {name}: {row['start']} at the start, quarters {row['quarters']}, {row['end']} at the end"
            )
    print(f"  log: {figures['log']}; zombies: {figures['zombies']}")
    print(f"  answered jobs that are missing in the archive: {figures['missing_in_archive']}")
    print(f"  broken promises: {figures['broken'] or 'none'}")
    for note in figures["notes"]:
        print(f"    {note}", flush=True)
