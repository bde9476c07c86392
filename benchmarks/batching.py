"""Time of a forward pass by size and batch, written as the table that `zimage-serve` and `ImageGenerator` batch by.

A server without a table measures one by itself while it has nothing to generate. This command measures all sizes at
once, also those whose passes would hold up a server's requests.
"""

import argparse

from benchmarks.harness.arguments import count
from benchmarks.harness.report import finish
from engine.options import RuntimeOptions, add_pipeline_arguments, sizes
from engine.pipeline import Pipeline
from engine.plan.directory import resolve
from engine.scheduler.batch_measurement import ROUNDS, BatchMeasurement
from engine.scheduler.table_files import TableFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    parser.add_argument(
        "--sizes",
        type=sizes,
        metavar="WxH,...",
        help="Sizes to measure (default: squares from each profile's smallest to its largest, doubling the side)",
    )
    parser.add_argument(
        "--rounds", type=count, default=ROUNDS, help="Measurements of each batch size (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    directory = resolve(args.engines)
    with Pipeline.load(directory, RuntimeOptions.of(args)) as pipeline:
        file = TableFile.of(directory, pipeline)
        file.require_writable()
        table = BatchMeasurement(pipeline, args.sizes, args.rounds).finish()
    file.write(table)
    for row in table.rows:
        per_image = ", ".join(f"{seconds / (i + 1) * 1e3:.1f}" for i, seconds in enumerate(row.seconds))
        print(f"{row.width}x{row.height}: {per_image} ms per image at batch 1, 2, ...; best batch {row.best}")
    print(f"wrote {file.path}, for {file.key.device}")
    finish("batching", {f"{row.width}x{row.height}": {"seconds": row.seconds, "best": row.best} for row in table.rows})
