"""Errors of FP32, FP16 and BF16 against float64 for one checkpoint, per graph, per step and in images.

FP16 is shown twice, with products summed in FP32 and in FP16. An evaluator that rounds, sums and overflows as a GPU
does runs every graph; ONNX Runtime on a CPU does not do that.
"""

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from skimage.metrics import structural_similarity

from benchmarks.harness.arguments import count_or_zero
from benchmarks.harness.evaluator import StrictEvaluator
from benchmarks.harness.pixels import psnr
from benchmarks.harness.report import finish
from benchmarks.harness.source import require_same_weights
from benchmarks.judge import score
from engine.backends.base import Backend, Bindings, Engine
from engine.backends.host_memory import HostMemory
from engine.files import whole_file
from engine.pipeline import Pipeline
from engine.plan.directory import read, resolve
from engine.plan.manifest import Accumulation, GraphName, Precision
from engine.plan.shapes import longest_sequence
from engine.request import ImageRequest
from engine.sampling.tokenizer import PromptTokenizer
from engine.size import Size
from export.checkpoint.files import Checkpoint, open_checkpoint
from export.compile.onnx_files import export_graphs
from export.compile.parity import relative_l2
from export.graphs.checkpoint_graphs import make_graphs
from export.precision.dtypes import graph_precisions
from export.progress import BuildProgress

Array = np.ndarray[Any, Any]
Figures = dict[str, Any]

GRAPHS: tuple[GraphName, ...] = ("prompt_encoder", "denoiser", "vae_decoder")
VARIANTS: dict[str, tuple[Precision, Accumulation]] = {
    "fp16": ("fp16", "fp32"),
    "fp16, summed in fp16": ("fp16", "fp16"),
    "bf16": ("bf16", "fp32"),
    "fp32": ("fp32", "fp32"),
}
REQUESTS = (
    ImageRequest("a small red circle to the left of a large blue square on a yellow background", 128, 128, seed=7),
    ImageRequest("黄色背景，左上角有一个蓝色星星", 256, 192, seed=7),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="The checkpoint's folder")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="Plans built from it")
    parser.add_argument(
        "--captions",
        type=count_or_zero,
        default=0,
        metavar="N",
        help="With z-image-nano: also score every precision on N captions (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="Write a plot of the error at each step")


def run(args: argparse.Namespace) -> None:
    directory, checkpoint = resolve(args.engines), open_checkpoint(args.model)
    require_same_weights(checkpoint, read(directory, verify=False))
    console = Console()
    images: dict[str, dict[str, Figures]] = {}
    figures: Figures = {"images": images}
    with TemporaryDirectory() as folder, whole_file(args.plot) if args.plot else nullcontext() as image:
        variants = Variants(checkpoint, directory, Path(folder))
        for request in REQUESTS:
            title = f"{request.width}x{request.height}"
            images[title] = variants.compare(request)
            console.print(table(title, images[title]))
        for name in VARIANTS if args.captions else ():
            shares = score(variants[name].pipeline, Size(128, 128), args.captions)["all"]
            figures.setdefault("judge", {})[name] = shares
            console.print(f"{name}:", ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
        if image is not None:
            plot(images, image)
    finish("parity", figures)


@dataclass(frozen=True, slots=True)
class Variant:
    """A checkpoint at one precision and accumulation."""

    engines: Mapping[GraphName, StrictEvaluator]
    pipeline: Pipeline


@dataclass(frozen=True, slots=True)
class Recorder(Engine):
    """An engine that keeps the inputs and the first output of every call."""

    engine: StrictEvaluator
    calls: list[tuple[dict[str, Array], Array]]

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        assert stream == 0, "a CPU has no streams"
        inputs = {name: bindings[name].copy() for name in self.engine.inputs}
        outputs = self.engine.run(inputs)
        for name, output in zip(self.engine.outputs, outputs, strict=True):
            bindings[name][:] = output
        self.calls.append((inputs, outputs[0]))


class Variants:
    """A checkpoint at every precision and accumulation, exported as for a GPU, and in float64.

    Args:
        directory: plan directory of the checkpoint, for its tokenizer and its model facts.
        folder: folder for ONNX files; they must exist as long as the variants are used.
    """

    def __init__(self, checkpoint: Checkpoint, directory: Path, folder: Path) -> None:
        self._manifest = read(directory)
        self._tokenizer = PromptTokenizer(directory, self._manifest.model.prompt)
        self._variants: dict[str, Variant] = {}
        keys = longest_sequence(self._manifest.profiles, self._manifest.model)
        for name, (precision, accumulation) in VARIANTS.items():
            (folder / name).mkdir()
            precisions, progress = graph_precisions(precision, "rtx"), BuildProgress(Console(stderr=True))
            made = make_graphs(checkpoint, precisions, accumulation)
            graphs = {graph: made[graph] for graph in GRAPHS}
            export_graphs(graphs, checkpoint, precisions, folder / name, progress, keys=keys)
            engines = {graph: StrictEvaluator(folder / name / f"{graph}.onnx") for graph in GRAPHS}
            self._variants[name] = Variant(engines, self._pipeline(engines))
        self._exact = {name: StrictEvaluator(folder / "fp32" / f"{name}.onnx", float64=True) for name in GRAPHS}

    def __getitem__(self, name: str) -> Variant:
        return self._variants[name]

    def compare(self, request: ImageRequest) -> dict[str, Figures]:
        """Generate an image with every variant and compare it with float64's.

        Returns:
            Relative L2 of each graph on float64's inputs, and of each step's velocity; PSNR in dB and SSIM of the
            image. The VAE decoder's is over levels of 0..255.
        """
        recorders = {name: Recorder(engine, []) for name, engine in self._exact.items()}
        exact = self._pipeline(recorders).generate(request).pixels
        return {
            name: _errors(variant, recorders) | _distances(variant.pipeline.generate(request).pixels, exact)
            for name, variant in self._variants.items()
        }

    def _pipeline(self, engines: Mapping[GraphName, Engine]) -> Pipeline:
        memory = HostMemory(self._manifest, self._manifest.profiles)
        return Pipeline(self._manifest, self._tokenizer, Backend(memory, engines))


def _errors(variant: Variant, recorders: Mapping[GraphName, Recorder]) -> Figures:
    found: Figures = {}
    for name, recorder in recorders.items():
        outputs = [(inputs, variant.engines[name].run(inputs)[0], exact) for inputs, exact in recorder.calls]
        if name == "denoiser":
            found["steps"] = [relative_l2(got - x["latents"], exact - x["latents"]) for x, got, exact in outputs]
            found[name] = max(found["steps"])
        else:
            [(_, got, exact)] = outputs
            found[name] = relative_l2(got, exact)
    return found


def _distances(pixels: Array, exact: Array) -> Figures:
    similarity = structural_similarity(pixels, exact, channel_axis=2)
    return {"psnr_db": round(psnr(pixels, exact), 1), "ssim": round(float(similarity), 5)}


def plot(figures: Mapping[str, Mapping[str, Figures]], file: IO[bytes]) -> None:
    """Plot the error of each step's velocity on a logarithmic axis, a line per variant and a panel per image."""
    figure, panels = plt.subplots(1, len(figures), sharey=True, squeeze=False, figsize=(4.5 * len(figures), 3.5))
    for axes, (title, found) in zip(panels[0], figures.items(), strict=True):
        for name, own in found.items():
            axes.semilogy(range(1, len(own["steps"]) + 1), own["steps"], marker="o", label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("velocity: relative L2 against float64")
    panels[0][0].legend(loc=(0.4, 0.2))
    figure.tight_layout()
    figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def table(title: str, found: Mapping[str, Figures]) -> Table:
    """Return a table with a row per variant. The denoiser's figure is that of its worst step."""
    rows = Table("precision", *GRAPHS, "PSNR", "SSIM", title=f"{title}: against float64")
    for name, own in found.items():
        rows.add_row(name, *(f"{own[graph]:.1e}" for graph in GRAPHS), f"{own['psnr_db']} dB", f"{own['ssim']:.5f}")
    return rows
