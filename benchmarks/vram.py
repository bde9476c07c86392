"""The GPU memory that Z-Image-Turbo needs, for cards of several sizes and the options that fit it into them.

Builds a few full-width layers of each graph, and adds up what `engine.backends.vram` adds up at load. The weights of
whole graphs come from tracing them, since plans of all layers take some 37 GB of memory to build. No GPU takes part.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import full_size
from benchmarks.harness.report import finish
from engine.backends.vram import VramPlan
from engine.options import SLOTS
from engine.plan.manifest import Graph, GraphName
from export.graphs.blend import Blend

CARDS = (12, 16, 24, 32, 80)  # GiB
TAKEN = 600_000_000  # bytes of a card that the driver and CUDA's context take; assumed, and more with a desktop
# Of the graphs with weights. Layers use the same memory one after another; the last one less, having fewer rows.
LAYERS: dict[GraphName, int] = {"prompt_encoder": 1, "denoiser": 2, "vae_decoder": 1, "vae_encoder": 1}
BUILDS: tuple[tuple[str, ...], ...] = ((), ("1024,256:2",), ("1024,256",), ("768,256",), ("512,256:4",), ("512,256",))


@dataclass(frozen=True, slots=True)
class Measured:
    """A graph's plan of a few layers.

    Attributes:
        ratio: bytes of the plan for each byte of weights.
    """

    graph: Graph
    ratio: float


@dataclass(frozen=True, slots=True)
class Row:
    """A way to build plans and to serve them. Each name is an argument of `--profile`; none means the default."""

    build: Sequence[str]
    serve: Sequence[str]
    vram: VramPlan

    def fits(self, card: int) -> bool:
        """Return True if a card of so many GiB has the memory."""
        return self.vram.needed <= card * 2**30 - TAKEN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compute-capability", default="8.9", help="GPU to build the layers for (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    builder = full_size.builder_for(args.compute_capability)
    weights = {name: full_size.trace(name)["weight_bytes"] for name in LAYERS}
    measured: dict[tuple[str, ...], dict[GraphName, Measured]] = {build: {} for build in BUILDS}
    for name, layers in LAYERS.items():
        with full_size.exported(name, layers, full_size.profiles_of(())) as (path, graph):
            for build, graphs in measured.items():
                figures = full_size.build(name, path, graph, full_size.profiles_of(build), builder)
                activations = tuple(figures["activation_bytes"].values())
                graphs[name] = Measured(replace(graph, activation_bytes=activations), figures["ratio"])
    rows = [row for build, graphs in measured.items() for row in rows_of(build, graphs, weights)]
    print("\n".join(table(rows)))
    finish("vram", {"weight_bytes": weights, "rows": [_figures(row) for row in rows]})


def rows_of(
    build: Sequence[str], measured: Mapping[GraphName, Measured], weights: Mapping[GraphName, int]
) -> Iterator[Row]:
    """Yield a row for every way to serve plans of one build.

    Args:
        weights: bytes of the whole graphs' weights; their plans are taken to be larger by the measured ratio.
    """
    profiles = full_size.profiles_of(build)
    blend = Blend(full_size.MODEL.latent_channels)
    whole = {name: replace(each.graph, weight_bytes=weights[name]) for name, each in measured.items()}
    whole["blend"] = Graph("blend.plan", blend.precision, blend.inputs, blend.outputs)  # its tensors count
    manifest = full_size.manifest(full_size.MODEL, "fp16", profiles, whole)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / whole["blend"].file).touch()
        for name, each in measured.items():
            with (Path(folder) / each.graph.file).open("wb") as plan:
                plan.truncate(int(weights[name] * each.ratio))  # a hole: only its size counts
        for serve in ((), (profiles[0].name,)) if len(profiles) > 1 else ((),):
            chosen = manifest.choose_profiles(serve)
            for offload in (False, True):
                yield Row(build, serve, VramPlan.of(Path(folder), manifest, chosen, offload=offload, slots=SLOTS))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table, in GB of 10^9 bytes."""
    cards = " | ".join(f"{card} GiB" for card in CARDS)
    yield f"| build-engines | zimage-serve | Weights | Activations | Tensors | Needed | For images in | {cards} |"
    yield "| --- " * (7 + len(CARDS)) + "|"
    for row in rows:
        options = _profile_options(row.serve) + ["--offload"] * row.vram.offload
        sizes = (row.vram.resident, row.vram.arena, row.vram.buffers, row.vram.needed, row.vram.image_input)
        cells = [
            f"`{' '.join(_profile_options(row.build))}`" if row.build else "default",
            f"`{' '.join(options)}`" if options else "default",
            *(f"{size / 1e9:.1f}" for size in sizes),
            *("yes" if row.fits(card) else "no" for card in CARDS),
        ]
        yield f"| {' | '.join(cells)} |"


def _profile_options(texts: Sequence[str]) -> list[str]:
    return [f"--profile {text}" for text in texts]


def _figures(row: Row) -> dict[str, Any]:
    return {
        "build": list(row.build),
        "serve": list(row.serve),
        "offload": row.vram.offload,
        "weights": dict(row.vram.weights),
        "activations": dict(row.vram.activations),
        "tensors": row.vram.buffers,
        "needed": row.vram.needed,
        "image_input": row.vram.image_input,
        "fits": [card for card in CARDS if row.fits(card)],
    }
