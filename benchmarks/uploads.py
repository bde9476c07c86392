"""Thousands of hostile image files to the decoder's process, or to zimage-serve: outcomes, time, memory.

Files come from a seed: damaged ones, bombs, unusual and foreign formats; `--folder` adds others, such as Pillow's test
images. A file is the image of an upload or, every third time, its mask. It is an error if a file is neither prepared
nor refused by name, or is not what it must be, or if memory is not given back; the exit status is then 1. On a busy
machine, files that take long are refused for now ("busy"): run it alone for the times.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.arguments import count, count_or_zero
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.report import finish
from benchmarks.hostile.receivers import BUSY, DecoderReceiver, Receiver, ServerReceiver
from server.allocator import give_back_large_blocks

ORDINARY = Path(__file__).parent.parent / "docs" / "contact-sheet.png"
MASKS = 3  # every third file is a mask
GROWTH = 32_000_000  # bytes that a process may have more at the end
SHOWN = 5  # slowest files
RECORDED = 100  # errors

Found = tuple[str, str | None, bytes]  # kind, what must become of it, data


@dataclass(slots=True)
class Tally:
    """Outcomes of the files of one kind, and the time of the slowest."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engines",
        type=Path,
        metavar="DIR",
        help="Send the files to zimage-serve with these plans (default: to the decoder)",
    )
    parser.add_argument("--files", type=count, default=2000, metavar="N", help="Files (default: %(default)s)")
    parser.add_argument("--seed", type=count_or_zero, default=0, help="Of the files (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, action="append", default=[], metavar="DIR", help="Folder of more files, repeatable"
    )


def run(args: argparse.Namespace) -> None:
    give_back_large_blocks()  # as the server does
    figures = asyncio.run(_measure(args))
    finish("uploads", figures)
    if figures["errors"]:
        sys.exit(1)


async def _measure(args: argparse.Namespace) -> dict[str, Any]:
    receiver: Receiver = ServerReceiver(args.engines) if args.engines else DecoderReceiver()
    tallies: dict[str, Tally] = {}
    times: list[tuple[float, str]] = []
    errors: list[str] = []
    try:
        before = await _settled(receiver)
        async for kind, expected, data in _files(args):
            is_mask = len(times) % MASKS == 0
            started = time.perf_counter()
            outcome = await receiver.send(*((ORDINARY.read_bytes(), data) if is_mask else (data, None)))
            times.append((time.perf_counter() - started, kind))
            tally = tallies.setdefault(kind, Tally())
            tally.slowest = max(tally.slowest, times[-1][0])
            result = outcome.partition(":")[0]
            tally.outcomes[result] += 1
            wrong = expected not in (None, result) and not is_mask  # a mask may select nothing
            if result != BUSY and (wrong or result not in ("prepared", "refused")):
                errors.append(f"{kind} ({len(data)} bytes): {outcome}")
        after = await _settled(receiver)
    finally:
        await receiver.close()
    errors += [
        f"{name} has {after[name] - before[name]} bytes more" for name in before if after[name] > before[name] + GROWTH
    ]
    _print(tallies, times, errors)
    return {
        "receiver": "server" if args.engines else "decoder",
        "outcomes": dict(sum((tally.outcomes for tally in tallies.values()), Counter())),
        "seconds": asdict(Distribution.of([seconds for seconds, _ in times])),
        "memory_before": before,
        "memory_after": after,
        "by_kind": {
            kind: dict(tally.outcomes) | {"slowest_s": round(tally.slowest, 3)}
            for kind, tally in sorted(tallies.items())
        },
        "errors": errors[:RECORDED],
    }


async def _settled(receiver: Receiver) -> dict[str, int]:
    """Return the bytes of memory of each process after an ordinary upload."""
    outcome = await receiver.send(ORDINARY.read_bytes(), None)
    if outcome != "prepared":
        raise RuntimeError(f"an ordinary image is {outcome}")
    return await receiver.memory()


async def _files(args: argparse.Namespace) -> AsyncIterator[Found]:
    command = [sys.executable, "-m", "benchmarks.hostile.files", str(args.files), str(args.seed)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    while line := await process.stdout.readline():
        kind, expected, length = json.loads(line)
        yield kind, expected, await process.stdout.readexactly(length)
    if await process.wait():
        raise RuntimeError("the files could not be made")
    for folder in args.folder:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"{folder.name}/*{file.suffix.lower()}", None, await asyncio.to_thread(file.read_bytes)


def _print(tallies: dict[str, Tally], times: list[tuple[float, str]], errors: list[str]) -> None:
    print(f"{'kind':36} {'prepared':>8} {'refused':>8} {'busy':>6} {'slowest':>8}")
    for kind, tally in sorted(tallies.items()):
        prepared, refused, busy = (tally.outcomes[name] for name in ("prepared", "refused", BUSY))
        print(f"{kind:36} {prepared:8} {refused:8} {busy:6} {tally.slowest:6.2f} s")
    print("slowest:", ", ".join(f"{seconds:.2f} s {kind}" for seconds, kind in sorted(times, reverse=True)[:SHOWN]))
    for error in errors:
        print(f"error: {error}")
