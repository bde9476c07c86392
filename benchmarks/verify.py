"""The comparison with DiffSynth that ends every build, at full width: its time and its peak memory.

Some layers of Z-Image-Turbo with random weights are written in FP32, exported, and compared in a process of its own.
Figures for all layers are extrapolated.
"""

import argparse
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.full_size import MODEL, manifest
from benchmarks.harness.arguments import count
from benchmarks.harness.report import Stopwatch, finish, peak_rss
from benchmarks.harness.source import random_components
from engine.files import whole_file
from engine.plan.manifest import Graph, GraphName, Manifest, Precision
from engine.plan.probes import PROBES_FILE
from export.checkpoint.files import Checkpoint, Component
from export.checkpoint.stored_weights import stored_weights
from export.checkpoint.weights import Weight
from export.compile.onnx_files import export_graphs
from export.compile.probes import needed_bytes, verify
from export.compile.profiles import default_profiles
from export.graphs.checkpoint_graphs import make_graphs
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress
from nano.layout import NANO, Z_IMAGE_TURBO, CheckpointSizes

SHARD_BYTES = 1 << 30
WEIGHTS_DONE, GRAPHS = "weights.done", "graphs.json"  # files that end a part

Part = Callable[[CheckpointSizes, Precision, Path], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=count, default=4, help="Layers of each transformer (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="BF16 graphs instead of FP16")
    parser.add_argument("--small", action="store_true", help="The sizes of z-image-nano, to try the command")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="Folder for some 15 GB of files, kept for the next run with the same options (default: a temporary one)",
    )


def run(args: argparse.Namespace) -> None:
    whole = NANO if args.small else Z_IMAGE_TURBO
    sizes = replace(whole, n_layers=args.layers, text_layers=args.layers + 1)
    precision: Precision = "bf16" if args.bf16 else "fp16"
    with ExitStack() as owned:
        kept = args.folder or Path(owned.enter_context(tempfile.TemporaryDirectory()))
        folder = kept / f"{'small' if args.small else 'full-width'}-{args.layers}-layers-{precision}"
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(sizes, precision, folder)
    for name in ("seconds", "core_seconds"):
        figures[f"whole_model_{name}"] = extrapolated(figures[name], args.layers, whole)
    finish("verify", figures)


def measure(sizes: CheckpointSizes, precision: Precision, folder: Path) -> dict[str, Any]:
    """Write weights and graphs unless they are in the folder, and compare them in a fresh process.

    Args:
        folder: folder for files of these sizes and this precision alone.

    Returns:
        Seconds of each graph's comparison, also of all cores together, which other programs do not change; peak
        resident set of the process; bytes of the probes.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # a spawned process would import modules from the current directory
    processes = multiprocessing.get_context("spawn")

    def run_part(part: Part) -> dict[str, Any]:
        with processes.Pool(1) as pool:  # each with the memory of its own process only
            return pool.apply(part, (sizes, precision, folder))

    figures: dict[str, Any] = {"layers": sizes.n_layers, "precision": precision}
    if not (folder / WEIGHTS_DONE).is_file():
        figures |= run_part(_write)
    if not (folder / GRAPHS).is_file():
        figures |= run_part(_export)
    return figures | run_part(_verify)


def extrapolated(seconds: Mapping[str, float], layers: int, whole: CheckpointSizes) -> float:
    """Return the seconds for all layers, as if each of those measured had cost the same."""
    refiners = whole.n_refiner_layers
    factors = {
        "prompt_encoder": (whole.text_layers - 1 + refiners) / (layers + refiners),
        "denoiser": (whole.n_layers + refiners) / (layers + refiners),
    }
    return round(sum(factors.get(graph, 1.0) * taken for graph, taken in seconds.items()), 1)


def _write(sizes: CheckpointSizes, _precision: Precision, folder: Path) -> dict[str, Any]:
    watch = Stopwatch()
    for component in random_components(sizes).values():
        for index, shard in enumerate(_shards(component.weights)):
            save_file({name: weight.load() for name, weight in shard.items()}, _shard(folder, component.name, index))
    (folder / WEIGHTS_DONE).touch()
    return {"write_s": round(watch.seconds, 1), "checkpoint_gb": _size(folder, "*.safetensors") / 1e9}


def _export(sizes: CheckpointSizes, precision: Precision, folder: Path) -> dict[str, Any]:
    watch, checkpoint = Stopwatch(), _open(sizes, folder)
    precisions = graph_precisions(precision, "rtx")
    graphs = export_graphs(make_graphs(checkpoint, precisions), checkpoint, precisions, folder, BuildProgress())
    with whole_file(folder / GRAPHS) as file:
        file.write(msgspec.json.encode(graphs))
    return {"export_s": round(watch.seconds, 1), "onnx_gb": _size(folder, "*.onnx*") / 1e9}


def _verify(sizes: CheckpointSizes, precision: Precision, folder: Path) -> dict[str, Any]:
    graphs = msgspec.json.decode((folder / GRAPHS).read_bytes(), type=dict[GraphName, Graph])
    checkpoint, progress = _open(sizes, folder), CoreSeconds()
    before, plans = peak_rss(), plans_of(sizes, precision)
    verified = verify(graphs, checkpoint, folder, plans, progress)
    return {
        "seconds": _by_graph(progress.seconds, graphs),
        "core_seconds": _by_graph(progress.core_seconds, graphs),
        "relative_l2": {name: graph.parity for name, graph in verified.items()},
        "rounding": {
            name: max(output.rounding for probe in graph.probes for output in probe.outputs.values())
            for name, graph in verified.items()
        },
        "peak_rss_bytes": peak_rss(),
        "imports_rss_bytes": before,
        "bound_bytes": needed_bytes(checkpoint, plans),
        "probes_bytes": (folder / PROBES_FILE).stat().st_size,
    }


def plans_of(sizes: CheckpointSizes, precision: Precision) -> Manifest:
    """Return the manifest that probes are made for: models of these sizes, with the default profiles."""
    rope = replace(MODEL.rope, axes_dims=sizes.axes_dims, axes_lens=sizes.axes_lens)
    model = replace(MODEL, prompt_embeds_dim=sizes.dim, rope=rope)
    return manifest(model, precision, default_profiles(sizes.sample_size, model), {})


def _open(sizes: CheckpointSizes, folder: Path) -> Checkpoint:
    parts = {}
    for name, random in random_components(sizes).items():
        files = tuple(sorted(folder.glob(f"{name}-*.safetensors")))
        parts[name] = Component(name, random.config, dict(stored_weights(files)), files)
    return Checkpoint("full-width", folder, **parts, scheduler={})


def _shards(weights: Mapping[str, Weight]) -> Iterator[dict[str, Weight]]:
    """Split weights into dicts of about SHARD_BYTES in FP32."""
    shard: dict[str, Weight] = {}
    held = 0
    for name, weight in weights.items():
        shard[name] = weight
        held += 4 * math.prod(weight.shape)
        if held > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
    if shard:
        yield shard


def _shard(folder: Path, component: str, index: int) -> Path:
    return folder / f"{component}-{index:02}.safetensors"


def _size(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


class CoreSeconds(BuildProgress):
    """Progress that also counts the seconds of all cores in each stage."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))
        self.core_seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.process_time()
        with super().stage(name):
            yield
        self.core_seconds[name] = time.process_time() - started


def _by_graph(seconds: Mapping[str, float], graphs: Iterable[GraphName]) -> dict[GraphName, float]:
    return {name: round(seconds[f"{name}: comparing with DiffSynth"], 1) for name in graphs}
