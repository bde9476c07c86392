"""Faults of a fleet. Each one begins at once and returns when what it broke is mended: restarted, plugged in, freed.

Knows processes, links and disks; no clients.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psutil

from benchmarks.fleet import records
from benchmarks.fleet.program import Program
from benchmarks.fleet.site import BROKER_LINK, DATABASE_LINK, Site
from benchmarks.services.service import Service

RESTART_DELAY = 2.0  # seconds until an orchestrator starts a process again
OUTAGE = 4.0  # seconds without a broker, a database or S3
BEYOND_LEASE = 15.0  # seconds; longer than a worker host holds a job without renewing its lease
SKEWED = 15.0  # seconds with another clock
COPIES = 3  # of every ticket that is delivered again

Fault = Callable[[Site, random.Random], Awaitable[None]]


async def kill_replica(site: Site, rng: random.Random) -> None:
    await _kill(rng.choice(site.deployment.replicas))


async def kill_host(site: Site, rng: random.Random) -> None:
    await _kill(rng.choice(site.deployment.hosts))


async def kill_engine(site: Site, rng: random.Random) -> None:
    _signal_engine(site, rng, signal.SIGKILL)


async def hang_engine(site: Site, rng: random.Random) -> None:
    """Make the next pass of a worker hang for ever."""
    _signal_engine(site, rng, signal.SIGUSR1)


async def stop_engine(site: Site, rng: random.Random) -> None:
    _signal_engine(site, rng, signal.SIGSTOP)


async def stop_host(site: Site, rng: random.Random) -> None:
    """Stop a host for longer than its leases: it goes on with jobs that others draw by then."""
    host = rng.choice(site.deployment.hosts)
    host.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(BEYOND_LEASE)
    finally:
        host.signal(signal.SIGCONT)


async def restart_broker(site: Site, _: random.Random) -> None:
    await _restart(site.broker)


async def pause_broker(site: Site, _: random.Random) -> None:
    await _pause(site.broker)


async def restart_database(site: Site, _: random.Random) -> None:
    await _restart(site.database)


async def pause_database(site: Site, _: random.Random) -> None:
    await _pause(site.database)


async def cut_broker(site: Site, _: random.Random) -> None:
    await _cut(site, BROKER_LINK)


async def cut_database(site: Site, _: random.Random) -> None:
    await _cut(site, DATABASE_LINK)


async def cut_both(site: Site, _: random.Random) -> None:
    await _cut(site, BROKER_LINK, DATABASE_LINK)


async def deliver_again(site: Site, _: random.Random) -> None:
    """Send copies of the tickets of all unfinished jobs."""
    jobs = await asyncio.to_thread(records.unfinished_jobs, site.urls.database)
    await asyncio.to_thread(site.send_tickets, COPIES * jobs)


async def clock_ahead(site: Site, _: random.Random) -> None:
    await _skew(site, "+1d")


async def clock_behind(site: Site, _: random.Random) -> None:
    await _skew(site, "-1h")


async def fill_disk(site: Site, _: random.Random) -> None:
    assert site.disk is not None
    site.disk.fill()
    try:
        await asyncio.sleep(OUTAGE)
    finally:
        site.disk.free()


async def restart_s3(site: Site, _: random.Random) -> None:
    assert site.s3 is not None
    await _restart(site.s3)


async def pause_s3(site: Site, _: random.Random) -> None:
    assert site.s3 is not None
    await _pause(site.s3)


PROCESSES: tuple[Fault, ...] = (
    kill_replica, kill_host, kill_engine, hang_engine, stop_engine, stop_host, restart_broker, pause_broker,
    restart_database, pause_database, deliver_again,
)  # fmt: skip
NETWORK: tuple[Fault, ...] = (cut_broker, cut_database, cut_both)
CLOCKS: tuple[Fault, ...] = (clock_ahead, clock_behind)
DISK: tuple[Fault, ...] = (fill_disk,)
S3: tuple[Fault, ...] = (restart_s3, pause_s3)
ALL: dict[str, Fault] = {fault.__name__: fault for fault in (*PROCESSES, *NETWORK, *CLOCKS, *DISK, *S3)}


def possible(site: Site) -> tuple[Fault, ...]:
    """Return the faults that a site can have."""
    found = PROCESSES
    found += NETWORK if site.network is not None else ()
    found += CLOCKS if site.has_clock else ()
    found += DISK if site.disk is not None else ()
    return found + (S3 if site.s3 is not None else ())


async def _kill(program: Program) -> None:
    program.kill()
    await asyncio.sleep(RESTART_DELAY)
    program.start()
    await asyncio.to_thread(program.wait_until_ready)


def _signal_engine(site: Site, rng: random.Random, number: signal.Signals) -> None:
    engines = [engine for host in site.deployment.hosts for engine in host.engines()]
    with suppress(psutil.NoSuchProcess):
        rng.choice(engines).send_signal(number)


async def _restart(service: Service) -> None:
    """Kill a server, and start it again on its data. In this thread, with which it would end."""
    service.kill()
    await asyncio.sleep(OUTAGE)
    service.start_without_waiting()
    await asyncio.to_thread(service.wait_until_ready)


async def _pause(service: Service) -> None:
    service.pause()
    try:
        await asyncio.sleep(OUTAGE)
    finally:
        service.resume()


async def _cut(site: Site, *links: int) -> None:
    """Cut links of the host in the namespace for longer than its leases."""
    assert site.network is not None
    for link in links:
        site.network.cut(link)
    try:
        await asyncio.sleep(BEYOND_LEASE)
    finally:
        for link in links:
            site.network.mend(link)


async def _skew(site: Site, offset: str) -> None:
    """Change the clock of one replica and one host."""
    site.set_clock(offset)
    try:
        await asyncio.sleep(SKEWED)
    finally:
        site.set_clock("+0")
