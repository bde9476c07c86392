"""The self-test: a device computes the probes of its plans, and what it gives is compared with FP32.

It finds kernels, drivers and GPUs that compute something else without an error. Knows backends and probes; not images.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.array import Array
from engine.backends.base import Backend
from engine.errors import SelfTestFailed
from engine.plan import probes
from engine.plan.manifest import Accumulation, ExpectedTensor, GraphName, Manifest, Precision, Probe
from engine.plan.probes import Distance
from engine.plan.shapes import covers, dimensions

log = logging.getLogger(__name__)

POISON = 0xA5  # fills outputs before a graph runs, so that one which writes nothing is found out

# What is allowed in any case: relative L2 of the whole, of the worst row, and the deviation of the gain from 1.
FLOORS: dict[Precision, Distance] = {
    "fp32": Distance(1e-3, 1e-2, 1e-3),
    "fp16": Distance(5e-3, 3e-2, 3e-3),
    "bf16": Distance(2e-2, 1e-1, 1e-2),
}
# Factors on the simulated cost of rounding, which rounds inputs and results of products, but not weights and attention.
# An evaluator that rounds as a GPU does has at most 2.6 times the cost for the whole and 5.3 times for a row, and far
# less in most models; sums in FP16 cost about ten times as much as rounding once (docs/findings.md).
MARGINS: dict[Accumulation, float] = {"fp32": 4.0, "fp16": 32.0}
ROW_MARGIN = 2.0  # times that, for a row
GAIN_SHARE = 16.0  # rounding has no direction: it changes the gain by a twentieth of what it changes the whole


@dataclass(frozen=True, slots=True)
class Result:
    """One output of a probe. `fault` says what is wrong with it, None if nothing is."""

    graph: GraphName
    probe: str
    output: str
    found: Distance
    allowed: Distance
    fault: str | None


def require(directory: Path, manifest: Manifest, backend: Backend) -> None:
    """Run the self-test.

    Args:
        manifest: with the profiles that are loaded.

    Raises:
        SelfTestFailed: a graph computes something else than FP32 does.
    """
    started = time.perf_counter()
    results = list(run(directory, manifest, backend))
    if not results:
        log.warning("the plans have no probes, so nothing shows that this device computes them correctly; build again")
        return
    for result in results:
        if result.fault is not None:
            raise SelfTestFailed(message(result, manifest, backend.device))
    log.info("self-test: %d outputs are right, in %.2f s", len(results), time.perf_counter() - started)


def run(directory: Path, manifest: Manifest, backend: Backend) -> Iterator[Result]:
    """Run the probes that a profile of the manifest covers, graph by graph, and yield a result per output."""
    tensors = probes.read(directory, list(manifest.graphs.values()))
    for name, graph in manifest.graphs.items():
        for probe in graph.probes:
            inputs = {key: tensors[stored] for key, stored in probe.inputs.items()}
            shapes = {key: array.shape for key, array in inputs.items()}
            if not any(covers(graph, dimensions(name, p, manifest.model), shapes) for p in manifest.profiles):
                continue
            expected = {key: tensors[output.key] for key, output in probe.outputs.items()}
            got = _compute(backend, name, inputs, expected)
            yield from _results(manifest, name, probe, got, expected)


def message(result: Result, manifest: Manifest, device: str) -> str:
    """Return the error of a result with a fault."""
    precision, builder = manifest.graphs[result.graph].precision, manifest.target.builder
    return (
        f"this device computes the {result.graph} wrongly: {result.fault} (probe {result.probe!r}, {precision}; "
        f"{device}; {builder}). Try another driver, another version of {builder.split()[0]}, or plans built with "
        "--accumulate fp32, --bf16 or --fp32; zimage-bench self-test shows all figures "
        "(docs/troubleshooting.md#the-self-test)"
    )


def allowed(expected: ExpectedTensor, precision: Precision, accumulation: Accumulation) -> Distance:
    """Return the largest distance of an output that rounding explains."""
    floor, margin = FLOORS[precision], MARGINS[accumulation if precision == "fp16" else "fp32"]
    whole = max(floor.whole, margin * expected.rounding)
    row = max(floor.row, ROW_MARGIN * margin * expected.row_rounding)
    return Distance(whole, row, max(floor.gain, whole / GAIN_SHARE))


def _compute(
    backend: Backend, name: GraphName, inputs: Mapping[str, Array], expected: Mapping[str, Array]
) -> dict[str, Array]:
    """Run a graph over poisoned outputs, with the memory that serves images; return copies of its outputs."""
    memory = backend.memory
    poisoned = {key: np.full(array.nbytes, POISON, np.uint8).view(array.dtype) for key, array in expected.items()}
    tensors = {key: memory.write(key, array) for key, array in inputs.items()}
    tensors |= {key: memory.write(key, poison.reshape(expected[key].shape)) for key, poison in poisoned.items()}
    for key in expected:
        memory.prepare_write(tensors[key])
    backend.engines[name].enqueue(memory.stream, tensors)
    return {key: memory.read(tensors[key]).wait().copy() for key in expected}


def _results(
    manifest: Manifest, name: GraphName, probe: Probe, got: Mapping[str, Array], expected: Mapping[str, Array]
) -> Iterator[Result]:
    precision = manifest.graphs[name].precision
    accumulation = manifest.accumulation if name == "denoiser" else "fp32"  # the others sum in FP32 in all plans
    for key, output in probe.outputs.items():
        limit = allowed(output, precision, accumulation)
        found = Distance.between(got[key], expected[key])
        yield Result(name, probe.name, key, found, limit, _fault(got[key], expected[key], found, limit))


def _fault(got: Array, expected: Array, found: Distance, limit: Distance) -> str | None:
    """Return what is wrong with an output, or None."""
    if (got.view(np.uint8) == POISON).all():
        return "it writes nothing"
    if not np.isfinite(got).all():
        return f"{np.mean(~np.isfinite(got)):.1%} of its output are NaN or Inf"
    if not got.any() and expected.any():
        return "it gives zeros only"
    for what, figure, most in (
        ("relative L2", found.whole, limit.whole),
        ("relative L2 of the worst row", found.row, limit.row),
        ("deviation of its scale", abs(found.gain - 1), limit.gain),
    ):
        if not figure <= most:
            return f"{what} {figure:.1e}, at most {most:.1e} is allowed"
    return None
