"""The parts `nano` and `self-test`: plans of all graphs of z-image-nano, and their probes on this device.

The plans of the checked model have no probes, which DiffSynth would have to compute at full width on the CPU; the parts
`errors-...` compare those plans with FP32.
"""

from contextlib import closing
from pathlib import Path

from benchmarks.gpu.cuda.calls import require
from benchmarks.gpu.findings import Findings, Settings, read_figures
from benchmarks.gpu.plans.build import build_nano
from benchmarks.harness.probe_report import figures_of, table
from benchmarks.harness.report import Stopwatch
from engine import self_test
from engine.backends.load import load_backend
from engine.options import RuntimeOptions
from engine.plan.directory import read
from nano.layout import Z_IMAGE_NANO


def nano(settings: Settings, found: Findings) -> None:
    """Build the plans as users do, which compares each exported graph with DiffSynth and makes probes."""
    watch = Stopwatch()
    directory = build_nano(settings, Z_IMAGE_NANO)
    manifest = read(directory, verify=False)
    errors = {name: graph.parity for name, graph in manifest.graphs.items()}
    found.add(directory=str(directory.resolve()), builder=manifest.target.builder, build_s=watch.seconds)
    found.add(relative_l2_of_exported_graphs=errors)
    found.answer(f"yes, {', '.join(errors)}: in {watch.seconds:.0f} s by {manifest.target.builder}")


def run_probes(settings: Settings, found: Findings) -> None:
    """Run the self-test that loading runs on a GPU; every graph has results, and none has a fault."""
    directory = Path(read_figures(settings.folder, "nano")["directory"])
    manifest = read(directory, verify=False)
    with closing(load_backend(directory, manifest, RuntimeOptions())) as backend:
        watch = Stopwatch()
        results = list(self_test.run(directory, manifest, backend))
        found.add(device=backend.device, seconds=watch.seconds, **figures_of(results))
    print("\n".join(table(results)))
    require(found.figures["graphs"].keys() == manifest.graphs.keys(), f"graphs with probes: {found.figures['graphs']}")
    faults = [result for result in results if result.fault is not None]
    found.add(outputs=len(results), faults=[self_test.message(result, manifest, backend.device) for result in faults])
    require(not faults, f"{len(faults)} of {len(results)} outputs: {', '.join(found.figures['faults'][:1])}")
    worst = (
        (name, each["relative_l2"], 100 * each["share_of_limit"]) for name, each in found.figures["graphs"].items()
    )
    found.answer(
        f"yes, {len(results)} outputs in {watch.seconds:.2f} s; relative L2, and share of the limits, at most: "
        + ", ".join(f"{name} {error:.1e} ({percent:.2g} %)" for name, error, percent in worst)
    )
