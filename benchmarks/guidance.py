"""Guided images of a checkpoint against those of diffusers, and the gain of running both prompts in one pass."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.harness.arguments import count
from benchmarks.harness.eager import Diffusers
from benchmarks.harness.pixels import EQUAL_DB, psnr
from benchmarks.harness.report import Stopwatch, finish
from benchmarks.harness.source import require_same_weights
from engine.pipeline import Pipeline
from engine.plan.manifest import Range
from engine.request import ImageRequest
from engine.scheduler.events import Denoised, Passed
from engine.scheduler.loop import EngineLoop
from engine.size import Size
from export.checkpoint.files import open_checkpoint
from nano.captions import caption
from nano.scenes import random_scene

NORMALIZATIONS, TRUNCATIONS = (0.0, 0.5, 1.0), (1.0, 0.7, 0.3)
STEPS, SCALES = (28, 50), (3.0, 4.0, 5.0)  # what Z-Image's model card recommends
SIZES = (Size(64, 64), Size(96, 64), Size(128, 128), Size(80, 272))
NEGATIVE = ("", "blurry, a blue star", "a blue star on a green background, " * 6)  # also of another padded length
REPEATS = 5
PAIR_SIZES = (Size(64, 64), Size(128, 128), Size(256, 256))


@dataclass(frozen=True, slots=True)
class Compared:
    """A request with its PSNR in dB, and the forward passes of ours and of diffusers."""

    request: ImageRequest
    psnr_db: float
    forwards: int
    diffusers_forwards: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="The checkpoint's folder")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="FP32 plans built from it")
    parser.add_argument(
        "--images", type=count, default=4, metavar="N", help="Images per setting (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(args.model)
    with Pipeline.load(args.engines) as pipeline:
        require_same_weights(checkpoint, pipeline.manifest)
        loop, diffusers = EngineLoop(pipeline), Diffusers(checkpoint)
        wanted = list(requests(args.images))
        found = [compare(request, loop, diffusers) for request in track(wanted, "images")]
        figures: dict[str, Any] = {"images": len(found), "settings": list(_rows(found))}
        _print(figures["settings"])
        figures["pass_pairs"] = {str(size): pairs(pipeline, size) for size in PAIR_SIZES}
    for size, taken in figures["pass_pairs"].items():
        print(f"{size}: {', '.join(f'{name} {value}' for name, value in taken.items())}")
    finish("guidance", figures)


def requests(images: int, seed: int = 0) -> Iterator[ImageRequest]:
    """Yield guided requests: as many `images` for each pair of a normalization and a truncation."""
    rng = Random(seed)
    for normalization, truncation, number in product(NORMALIZATIONS, TRUNCATIONS, range(images)):
        yield ImageRequest(
            caption(random_scene(rng), "zh" if number % 2 else "en", rng),
            *SIZES[number % len(SIZES)],
            seed=rng.getrandbits(32),
            num_inference_steps=rng.choice(STEPS),
            negative_prompt=NEGATIVE[number % len(NEGATIVE)],
            guidance_scale=rng.choice(SCALES),
            cfg_normalization=normalization,
            cfg_truncation=truncation,
        )


def compare(request: ImageRequest, loop: EngineLoop, diffusers: Diffusers) -> Compared:
    """Generate an image with a loop and with diffusers."""
    ours = loop.generate(request).pixels
    before = diffusers.forwards
    (theirs,) = diffusers.generate([request])
    forwards = request.forwards(loop.pipeline.manifest)
    return Compared(request, psnr(ours, theirs), forwards, diffusers.forwards - before)


def pairs(pipeline: Pipeline, size: Size) -> dict[str, float]:
    """Return the passes and the median seconds of a guided image whose prompts share passes, and of one whose do not.

    Both have the same prompts and run alternately, the second one on profiles without a batch of two.
    """
    profiles = tuple(replace(profile, batch=Range(1, 1, 1)) for profile in pipeline.manifest.profiles)
    single = Pipeline(replace(pipeline.manifest, profiles=profiles), pipeline.tokenize, pipeline.backend)
    request = ImageRequest("a red circle", *size, 7, negative_prompt=NEGATIVE[1], guidance_scale=4.0)
    taken: dict[str, list[tuple[int, float]]] = {"paired": [], "separate": []}
    for _ in range(REPEATS + 1):
        for name, used in zip(taken, (pipeline, single), strict=True):
            taken[name].append(_passes(EngineLoop(used), request))
    figures: dict[str, float] = {}
    for name, (_, *counted) in taken.items():  # the first ones warmed up
        figures[f"{name}_passes"] = counted[0][0]
        figures[f"{name}_s"] = round(median(seconds for _, seconds in counted), 3)
    return figures


def _passes(loop: EngineLoop, request: ImageRequest) -> tuple[int, float]:
    """Generate an image; return its forward passes, each of one batch, and the seconds until its pixels are there."""
    watch, passes = Stopwatch(), 0
    loop.submit("", request)
    while not loop.is_idle:
        for event in loop.step():
            match event:
                case Passed():
                    passes += 1
                case Denoised():
                    event.pending.finish()
    return passes, watch.seconds


def _rows(found: Sequence[Compared]) -> Iterator[dict[str, float]]:
    for normalization, truncation in product(NORMALIZATIONS, TRUNCATIONS):
        key = normalization, truncation
        own = [one for one in found if (one.request.cfg_normalization, one.request.cfg_truncation) == key]
        distances = [min(one.psnr_db, EQUAL_DB) for one in own]
        yield {
            "cfg_normalization": normalization,
            "cfg_truncation": truncation,
            "worst_db": round(min(distances), 1),
            "median_db": round(median(distances), 1),
            "other_forwards": sum(one.forwards != one.diffusers_forwards for one in own),
        }


def _print(rows: Sequence[dict[str, float]]) -> None:
    table = Table("normalization", "truncation", "worst dB", "median dB", "images with other forwards")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
