"""Faults of a fleet under clients, one at a time or, with --soak, at random for many minutes.

Two API replicas and three worker hosts with a timed stand-in engine, around a real broker and PostgreSQL. Processes are
killed, stopped and hung, servers restarted, cables pulled, clocks set, disks filled, tickets delivered again. Clients
behave as OpenAI's: they repeat a request with its idempotency key. Afterwards every request is compared with what
triggers of the database recorded: what was accepted has ended once, every image was stored once and is the one that was
asked for. The exit status is 1 if not.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from benchmarks.fleet import faults, records
from benchmarks.fleet.accounting import Accounts
from benchmarks.fleet.cases import DEADLY, Pace, run_case, storm
from benchmarks.fleet.logs import tracebacks
from benchmarks.fleet.recovery import Recovery
from benchmarks.fleet.site import Broker, Images, Site, SiteOptions, missing, running
from benchmarks.harness.arguments import count, positive
from benchmarks.harness.report import finish

NAMES = (*faults.ALL, *DEADLY)
# each images' store with a broker: its own faults are about the store alone
SITES: tuple[tuple[Broker, Images], ...] = (
    ("redis", "database"), ("rabbitmq", "database"), ("redis", "s3"), ("rabbitmq", "folder"),
)  # fmt: skip
SOAK_PAUSE = (8.0, 16.0)  # seconds between two faults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--brokers",
        nargs="+",
        choices=get_args(Broker),
        default=get_args(Broker),
        help="Brokers to use (default: both)",
    )
    parser.add_argument(
        "--faults",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help=f"Faults to cause (default: all), of {', '.join(NAMES)}",
    )
    parser.add_argument("--clients", type=count, default=20, help="Number of clients (default: %(default)s)")
    parser.add_argument(
        "--soak",
        type=positive,
        metavar="MINUTES",
        help="Cause random faults for so many minutes, instead of each fault once",
    )
    parser.add_argument("--seed", type=int, default=1, help="Seed of all random choices (default: %(default)s)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="Folder in which the logs are kept (default: they are deleted)"
    )


def run(args: argparse.Namespace) -> None:
    """Cause the faults; exit with 1 if a promise was broken."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # with namespaces and mounts removed
    figures: dict[str, Any] = {
        "clients": args.clients,
        "soak_minutes": args.soak,
        "load_average": os.getloadavg()[0],  # times measured on a busy machine mean little
        "cases": [],
        "tracebacks": {},
    }
    for broker, images in SITES:
        names = _names(images, args.faults or NAMES)
        if broker not in args.brokers or not names or (args.soak and images != "database"):
            continue
        options = SiteOptions(broker, images, clients=args.clients)
        if lacking := missing(options):
            print(f"{broker}, images in {images}: skipped, since this machine lacks {lacking}", flush=True)
            continue
        with ExitStack() as opened:
            site = opened.enter_context(running(options, _folder(opened, args.keep, f"{broker}-{images}")))
            print(f"{broker}, images in {images}: {args.clients} clients", flush=True)
            found = _cases(site, options, names, args.soak and args.soak * 60, args.seed)
            figures["cases"] += [row | {"broker": broker, "images": images} for row in found]
            figures["tracebacks"][f"{broker}-{images}"] = _tracebacks(site)
    finish("fleet-faults", figures)
    if any(row.get("broken") for row in figures["cases"]):
        sys.exit(1)


def _cases(
    site: Site, options: SiteOptions, names: Sequence[str], soak_seconds: float | None, seed: int
) -> list[dict[str, Any]]:
    """Return the figures of a soak, or of each fault; a job must not change after its case, either."""
    if soak_seconds is not None:
        return [soak(site, options, soak_seconds, seed)]
    found = [_run_one(site, options, name, seed + number) for number, name in enumerate(names)]
    accounts = Accounts()
    counted = records.check(records.read(site.urls.database), accounts)
    print(f"  afterwards: {counted}; broken: {dict(accounts.broken) or 'none'}", flush=True)
    return [*found, {"fault": "afterwards", "records": counted, "broken": dict(accounts.broken)}]


def _names(images: Images, chosen: Sequence[str]) -> list[str]:
    """Return the faults for a fleet with this store of images: those of the store alone, or all others."""
    own = {"folder": faults.DISK, "s3": faults.S3}
    stores = {fault.__name__ for group in own.values() for fault in group}
    if images in own:
        return [fault.__name__ for fault in own[images] if fault.__name__ in chosen]
    return [name for name in chosen if name not in stores]


def _tracebacks(site: Site) -> dict[str, int]:
    """Print and return the tracebacks in the logs of all processes."""
    found = tracebacks([log for program in site.deployment.programs for log in program.logs])
    for line, number in found.most_common():
        print(f"  {number} tracebacks: {line}", flush=True)
    return dict(found)


def _folder(opened: ExitStack, keep: Path | None, name: str) -> Path:
    if keep is None:
        return Path(opened.enter_context(tempfile.TemporaryDirectory()))
    (keep / name).mkdir(parents=True, exist_ok=True)
    return keep / name


def _run_one(site: Site, options: SiteOptions, name: str, seed: int) -> dict[str, Any]:
    possible = {fault.__name__ for fault in faults.possible(site)} | DEADLY.keys()
    if name not in possible:
        print(f"  {name:16} skipped: this machine has no network namespaces, or no libfaketime", flush=True)
        return {"fault": name, "skipped": True}
    found = asyncio.run(run_case(site, name, options.keys, seed, Pace()))
    _print(name, found)
    return {"fault": name} | found


def soak(site: Site, options: SiteOptions, seconds: float, seed: int) -> dict[str, Any]:
    """Cause random faults for some time; return the figures, with the recovery from each fault."""
    rng, until = random.Random(seed), time.monotonic() + seconds

    def random_faults() -> Iterator[faults.Fault]:
        """Yield all faults in random order, again and again."""
        while True:
            for fault in rng.sample(faults.possible(site), len(faults.possible(site))):
                if time.monotonic() > until:
                    return
                yield fault

    found, recoveries = asyncio.run(storm(site, random_faults(), options.keys, seed, SOAK_PAUSE))
    _print_soak(found, recoveries)
    return found | {"fault": "soak", "recoveries": list(map(asdict, recoveries))}


def _print(name: str, found: dict[str, Any]) -> None:
    recovery, counted = found["recovery"], found["records"]
    first = recovery["first_success"]
    print(
        f"  {name:16} mended {recovery['mended']:5.1f} s, first success {_seconds(first)}, "
        f"{recovery['under_way']:2} under way ended {recovery['all_ended']:5.1f} s, "
        f"longest gap {recovery['longest_gap']:5.1f} s; accepted {counted['accepted']}, ended {counted['ended']}, "
        f"twice {counted['ended_twice']}, drawn again {counted['queued_again']}; "
        f"{found['outcomes']}; broken: {found['broken'] or 'none'}",
        flush=True,
    )
    for note in found["notes"]:
        print(f"    {note}", flush=True)


def _print_soak(found: dict[str, Any], recoveries: Sequence[Recovery]) -> None:
    print(f"  {found['requests']} requests: {found['outcomes']}; {found['records']}")
    for name in sorted({recovery.fault for recovery in recoveries}):
        those = [recovery for recovery in recoveries if recovery.fault == name]
        slowest, gap = max(one.all_ended for one in those), max(one.longest_gap for one in those)
        print(f"  {name:16} {len(those):2} times: all ended after {slowest:5.1f} s, longest gap {gap:5.1f} s")
    print(f"  largest MiB: {found['largest_mib']}; broken: {found['broken'] or 'none'}", flush=True)
    for note in found["notes"]:
        print(f"    {note}", flush=True)


def _seconds(value: float | None) -> str:
    return "  none" if value is None else f"{value:5.1f} s"
