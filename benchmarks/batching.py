"""Time of a forward pass by size and batch, written as the table that `zimage-serve` batches by.

Batch sizes alternate within each round, so that a slow phase of the machine affects all of them. The table is written
beside the plans.
"""

import argparse
import statistics
import time

import numpy as np

from benchmarks.harness.arguments import count
from benchmarks.harness.report import finish, hardware
from engine.errors import UnsupportedShape
from engine.files import whole_file
from engine.options import RuntimeOptions, add_pipeline_arguments, sizes
from engine.pipeline import Pipeline
from engine.plan.directory import resolve
from engine.plan.manifest import Manifest
from engine.request import ImageRequest
from engine.scheduler.batch_table import TABLE_FILE, BatchTable, PassTimes
from engine.size import Size

PROMPT = "a small red circle to the left of a large blue star on a yellow background"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    parser.add_argument(
        "--sizes",
        type=sizes,
        metavar="WxH,...",
        help="Sizes to measure (default: squares from each profile's smallest to its largest, doubling the side)",
    )
    parser.add_argument(
        "--rounds", type=count, default=7, help="Measurements of each batch size (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    directory = resolve(args.engines)
    with whole_file(directory / TABLE_FILE) as file:
        with Pipeline.load(directory, RuntimeOptions.of(args)) as pipeline:
            chosen = args.sizes or usual_sizes(pipeline.manifest)
            rows = tuple(measure(pipeline, size, args.rounds) for size in chosen)
        machine = hardware()
        table = BatchTable(", ".join(gpu["name"] for gpu in machine.get("gpus", [])) or machine["cpu"], rows)
        file.write(table.encode())
    for row in rows:
        per_image = ", ".join(f"{seconds / (i + 1) * 1e3:.1f}" for i, seconds in enumerate(row.seconds))
        print(f"{row.width}x{row.height}: {per_image} ms per image at batch 1, 2, ...; best batch {row.best}")
    print(f"wrote {directory / TABLE_FILE}")
    finish("batching", {f"{row.width}x{row.height}": {"seconds": row.seconds, "best": row.best} for row in rows})


def usual_sizes(manifest: Manifest) -> list[Size]:
    """Return squares: each profile's smallest and largest, and the doublings of the smallest in between."""
    found = set()
    for profile in manifest.profiles:
        low, high = max(profile.height.min, profile.width.min), min(profile.height.max, profile.width.max)
        while low < high:
            found.add(low)
            low *= 2
        found.add(high)
    return [Size(side, side) for side in sorted(found)]


def measure(pipeline: Pipeline, size: Size, rounds: int) -> PassTimes:
    """Measure the median seconds of a forward pass at every batch that the plans support at a size."""
    batches = _batches(pipeline.manifest, size)
    for batch in batches:
        _pass_seconds(pipeline, size, batch)  # warms up kernels, arrays and CUDA graphs
    found = [[_pass_seconds(pipeline, size, batch) for batch in batches] for _ in range(rounds)]
    return PassTimes(*size, tuple(statistics.median(column) for column in zip(*found, strict=True)))


def _batches(manifest: Manifest, size: Size) -> range:
    batch = 1
    while True:
        try:
            manifest.profile_for(size, batch + 1)
        except UnsupportedShape:
            return range(1, batch + 1)
        batch += 1


def _pass_seconds(pipeline: Pipeline, size: Size, batch: int) -> float:
    """Return the seconds of one forward pass, the mean over the steps of one batch of images."""
    schedule = pipeline.schedule(ImageRequest(PROMPT))
    noise = np.concatenate([pipeline.noise(seed, size) for seed in range(batch)])
    prompt_embeds = pipeline.encode_prompt([pipeline.tokenize(PROMPT)] * batch)
    pipeline.synchronize()
    started = time.perf_counter()
    pipeline.denoise(prompt_embeds, noise, schedule)
    pipeline.synchronize()
    return (time.perf_counter() - started) / (len(schedule) - 1)
