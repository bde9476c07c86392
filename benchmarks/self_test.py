"""The self-test of a plan directory, with all figures: what `Pipeline.load` does on a GPU, on any device."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Stopwatch, finish
from engine import self_test
from engine.backends.load import load_backend
from engine.errors import PlanMismatch, SelfTestFailed
from engine.options import RuntimeOptions, add_pipeline_arguments
from engine.plan.directory import read, resolve
from engine.self_test import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)


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


def table(results: Sequence[Result]) -> list[str]:
    """Return a line per output: relative L2 of the whole and of the worst row, and scale, each beside its limit."""
    lines = [f"{'graph':16}{'probe':22}{'output':16}{'relative L2':>18}{'worst row':>18}{'scale - 1':>18}"]
    for each in results:
        found, limit = each.found, each.allowed
        pairs = ((found.whole, limit.whole), (found.row, limit.row), (abs(found.gain - 1), limit.gain))
        figures = "".join(f"{f'{figure:.1e} ({most:.0e})':>18}" for figure, most in pairs)
        lines.append(f"{each.graph:16}{each.probe:22}{each.output:16}{figures}  {each.fault or ''}".rstrip())
    return lines


def figures_of(results: Sequence[Result]) -> dict[str, Any]:
    """Return the worst figures of each graph; None for one that is not finite."""
    graphs: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(result.graph for result in results):
        own = [result for result in results if result.graph == name]
        worst = {
            "relative_l2": max(result.found.whole for result in own),
            "worst_row": max(result.found.row for result in own),
            "share_of_limit": max(_share(result) for result in own),
        }
        finite = all(math.isfinite(_share(result)) for result in own)  # max() may skip NaN
        graphs[name] = {key: figure if finite else None for key, figure in worst.items()}
    return {"graphs": graphs}


def _share(result: Result) -> float:
    """Return how much of what is allowed an output takes; 1 and more is a fault."""
    found, limit = result.found, result.allowed
    return max(found.whole / limit.whole, found.row / limit.row, abs(found.gain - 1) / limit.gain)
