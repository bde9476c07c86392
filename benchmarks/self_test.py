"""The self-test of a plan directory, with all figures: what `Pipeline.load` does on a GPU, on any device."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.probe_report import figures_of, table
from benchmarks.harness.report import Stopwatch, finish
from engine import self_test
from engine.backends.load import load_backend
from engine.errors import PlanMismatch, SelfTestFailed
from engine.options import RuntimeOptions, add_backend_arguments
from engine.plan.directory import read, resolve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend_arguments(parser)


def run(args: argparse.Namespace) -> None:
    figures, fault = measure(args.engines, RuntimeOptions.of(args))
    finish("self-test", figures)
    if fault is not None:
        raise SelfTestFailed(fault)


def measure(engines: Path, options: RuntimeOptions) -> tuple[dict[str, Any], str | None]:
    """Load plans, run their probes and print a table.

    Returns:
        The figures, and the message of the first fault if there is one.

    Raises:
        PlanMismatch: the plans have no probes.
    """
    directory = resolve(engines)
    manifest = read(directory)
    served = replace(manifest, profiles=tuple(manifest.choose_profiles(options.profiles).values()))
    backend = load_backend(directory, manifest, options)
    try:
        watch = Stopwatch()
        results = list(self_test.run(directory, served, backend))
        seconds = watch.seconds
    finally:
        backend.close()
    if not results:
        raise PlanMismatch(f"{directory} has no probes, since it was built with --no-verify; build again without it")
    for line in table(results):
        print(line)
    faults = [result for result in results if result.fault is not None]
    print(f"{len(results) - len(faults)} of {len(results)} outputs are right, {seconds:.2f} s, {backend.device}")
    fault = self_test.message(faults[0], manifest, backend.device) if faults else None
    return figures_of(results) | {"device": backend.device, "seconds": round(seconds, 3), "faults": len(faults)}, fault
