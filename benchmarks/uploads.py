"""Thousands of hostile image files through the decoder's process, as zimage-serve uses it: outcomes, time, memory.

Files come from a seed: damaged ones, bombs, unusual and foreign formats; `--folder` adds others, such as Pillow's test
images. A file is the image of an upload or, every third time, its mask. It is an error if a file is neither prepared
nor refused by name, or is not what it must be, or if memory is not given back; the exit status is then 1.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.arguments import count, count_or_zero
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.report import finish
from engine.errors import InvalidRequest
from engine.images.preparation import Preparation
from engine.size import Size, SizeLimits, SizeRange
from server.allocator import give_back_large_blocks
from server.errors import UploadsBusy
from server.uploads.uploads import Uploads

SIZES = SizeLimits(16, (SizeRange(256, 2048, 256, 2048),), Size(1024, 1024))  # Z-Image-Turbo's
PREPARATION = Preparation(SIZES)
IMAGE = Path(__file__).parent.parent / "docs" / "contact-sheet.png"
MASKS = 3  # every third file is a mask
GROWTH = 32_000_000  # bytes that the server, or an idle decoder, may have more at the end
SHOWN = 5  # slowest files

Found = tuple[str, str | None, bytes]  # kind, what must become of it, data


@dataclass(slots=True)
class Tally:
    """What became of the files of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=count, default=2000, metavar="N", help="Files (default: %(default)s)")
    parser.add_argument("--seed", type=count_or_zero, default=0, help="Of the files (default: %(default)s)")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="Folder of more files, repeatable")
    parser.add_argument(
        "--repeat", type=count, default=1, metavar="N", help="Times that each file is sent (default: 1)"
    )


def run(args: argparse.Namespace) -> None:
    give_back_large_blocks()  # as the server does
    figures = asyncio.run(_measure(args))
    finish("uploads", figures)
    if figures["errors"]:
        sys.exit(1)


async def _measure(args: argparse.Namespace) -> dict[str, Any]:
    uploads = Uploads()
    tallies: dict[str, Tally] = {}
    times: list[tuple[float, str]] = []
    errors: list[str] = []
    try:
        before = await _memory(uploads)
        number = 0
        async for kind, expected, data in _files(args):
            for _ in range(args.repeat):
                is_mask = number % MASKS == 0
                outcome, seconds = await _outcome(uploads, data, is_mask)
                number += 1
                tally = tallies.setdefault(kind, Tally())
                tally.outcomes[outcome] += 1
                tally.slowest = max(tally.slowest, seconds)
                times.append((seconds, kind))
                wrong = expected is not None and expected != outcome and not is_mask  # a mask may select nothing
                if outcome not in ("prepared", "refused") or wrong:
                    errors.append(f"{kind} ({len(data)} bytes): {outcome}")
        starts = uploads.decoder.starts
        after = await _memory(uploads)
    finally:
        await uploads.close()
    errors += [
        f"{name}: {after[name] - before[name]} bytes more" for name in before if after[name] > before[name] + GROWTH
    ]
    _print(tallies, times, errors)
    return {
        "files": len(times),
        "outcomes": dict(sum((tally.outcomes for tally in tallies.values()), Counter())),
        "by_kind": {
            kind: dict(tally.outcomes) | {"slowest_s": tally.slowest} for kind, tally in sorted(tallies.items())
        },
        "seconds": asdict(Distribution.of([seconds for seconds, _ in times])),
        "decoder_starts": starts,
        "memory_before": before,
        "memory_after": after,
        "errors": errors[:100],
    }


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
            yield f"{folder.name}: {file.suffix or 'no suffix'}", None, await asyncio.to_thread(file.read_bytes)


async def _outcome(uploads: Uploads, data: bytes, is_mask: bool) -> tuple[str, float]:
    image, mask = (IMAGE.read_bytes(), data) if is_mask else (data, None)
    started = time.perf_counter()
    try:
        await uploads.prepare(image, mask, PREPARATION)
        outcome = "prepared"
    except InvalidRequest as error:
        outcome = (
            "refused" if error.param in ("image", "mask") and len(str(error)) < 400 else f"refused for {error.param}"
        )
    except UploadsBusy:
        outcome = "busy"
    return outcome, time.perf_counter() - started


async def _memory(uploads: Uploads) -> dict[str, int]:
    """Return the bytes of memory of this process and of the decoder's, after an ordinary upload."""
    await uploads.prepare(IMAGE.read_bytes(), None, PREPARATION)
    gc.collect()
    await asyncio.sleep(0.5)  # the decoder gives its memory back after its answer
    return {
        "server": psutil.Process().memory_info().rss,
        "decoder": psutil.Process(uploads.decoder.pid).memory_info().rss,
    }


def _print(tallies: dict[str, Tally], times: list[tuple[float, str]], errors: list[str]) -> None:
    print(f"{'kind':36} {'prepared':>8} {'refused':>8} {'other':>6} {'slowest':>8}")
    for kind, tally in sorted(tallies.items()):
        prepared, refused = tally.outcomes["prepared"], tally.outcomes["refused"]
        other = tally.outcomes.total() - prepared - refused
        print(f"{kind:36} {prepared:8} {refused:8} {other:6} {tally.slowest:6.2f} s")
    print("slowest:", ", ".join(f"{seconds:.2f} s {kind}" for seconds, kind in sorted(times, reverse=True)[:SHOWN]))
    for error in errors:
        print(f"error: {error}")
