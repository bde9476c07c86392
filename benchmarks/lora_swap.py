"""Time that the host needs for a LoRA swap, in seconds per GB of weights.

Weights have the full model's width: Q, K and V of a block in one. `merge` is what a swap does for each weight that a
LoRA changes, beside the plain way: the whole weight in numpy, transposed to [out, in] and back. `read` is what a swap
does for a weight that gets its own values back, as far as the host is concerned: a copy of a mapped file that is in the
page cache. What TensorRT adds takes a GPU to measure: `zimage-bench gpu-check`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.harness.arguments import count
from benchmarks.harness.report import finish
from engine.array import Array
from engine.plan.merge import Merger, Product

OUT, IN, PARTS = 11520, 3840, 3
DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
RANKS = (16, 64)
SEED = 7

Factors = Sequence[tuple[Array, Array]]  # down [rank, in] and up [out, rank] of each part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=count, default=5, metavar="N", help="Runs of each (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    rows = []
    for dtype in DTYPES:
        for transposed in (False, True):
            for rank in RANKS:
                row = measure(dtype, rank, transposed, args.runs)
                print(", ".join(f"{name} {value}" for name, value in row.items()))
                rows.append(row)
    read = read_seconds(args.runs)
    print(f"read: {read:.2f} s/GB")
    finish("lora-swap", {"runs": args.runs, "merge": rows, "read_s_per_gb": read})


def measure(dtype: str, rank: int, transposed: bool, runs: int) -> dict[str, Any]:
    """Return seconds per GB, by the clock and of all cores, in the plain way and on all cores."""
    rng = np.random.default_rng(SEED)
    shape = (IN, OUT) if transposed else (OUT, IN)
    base = (0.02 * rng.standard_normal(shape, np.float32)).astype(DTYPES[dtype])

    def factor(*extents: int) -> Array:
        return np.float32(0.05) * rng.standard_normal(extents, np.float32)

    factors = [(factor(rank, IN), factor(OUT // PARTS, rank)) for _ in range(PARTS)]
    plain = _timed(lambda: merge_plainly(base, factors, transposed), runs)
    with Merger() as merger:
        products = products_of(factors, transposed)
        merged = _timed(lambda: merger.start(base, products, 0, 0).wait(), runs)
    gb = base.nbytes / 1e9
    return {
        "dtype": dtype,
        "layout": "[in, out]" if transposed else "[out, in]",
        "rank": rank,
        "plain_s_per_gb": round(plain[1] / gb, 2),
        "plain_cpu_s_per_gb": round(plain[2] / gb, 2),
        "s_per_gb": round(merged[1] / gb, 2),
        "cpu_s_per_gb": round(merged[2] / gb, 2),
        "different": int(np.sum(plain[0].view(np.uint16) != merged[0].view(np.uint16))),
    }


def merge_plainly(base: Array, factors: Factors, transposed: bool) -> Array:
    """Merge a whole weight in its checkpoint's layout."""
    merged = (base.T if transposed else base).astype(np.float32)
    for rows, (down, up) in zip(np.split(merged, len(factors)), factors, strict=True):
        rows += up @ down
    return np.ascontiguousarray(merged.T if transposed else merged, base.dtype)


def products_of(factors: Factors, transposed: bool) -> list[Product]:
    """Return what is added to the weight as it is stored."""
    at = [sum(len(up) for _, up in factors[:number]) for number in range(len(factors))]
    return [
        Product(down.T, up.T, 0, first) if transposed else Product(up, down, first, 0)
        for first, (down, up) in zip(at, factors, strict=True)
    ]


def read_seconds(runs: int) -> float:
    """Return the seconds per GB in which a mapped weight is copied."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weight")
        np.zeros((OUT, IN), np.float16).tofile(file)
        target = np.empty((OUT, IN), np.float16)
        _, seconds, _ = _timed(lambda: np.copyto(target, np.memmap(file, np.float16, "r", 0, (OUT, IN))), runs)
        return seconds / (target.nbytes / 1e9)


def _timed(work: Callable[[], Any], runs: int) -> tuple[Any, float, float]:
    """Return the last result, and the medians of seconds by the clock and of all cores; a first run is not counted."""
    result = work()
    clock, cores = [], []
    for _ in range(runs):
        started = time.perf_counter(), time.process_time()
        result = work()
        clock.append(time.perf_counter() - started[0])
        cores.append(time.process_time() - started[1])
    return result, statistics.median(clock), statistics.median(cores)
