"""Images of the same prompt and seed by the peers, and the sources of their differences.

diffusers in FP32 generates the same image, from noise and from another image. DiffSynth as shipped generates its noise,
rounds its timesteps and keeps its latents in BF16. `export.compile.parity` compares with DiffSynth's modules on FP32
timesteps and latents.
"""

import argparse
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.harness.arguments import count
from benchmarks.harness.eager import DiffSynth, Diffusers
from benchmarks.harness.edits import Compared, cases, compare
from benchmarks.harness.pixels import EQUAL_DB, decibels
from benchmarks.harness.report import finish
from benchmarks.harness.runner import Runner
from benchmarks.harness.source import require_same_weights
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.scheduler.loop import EngineLoop
from export.checkpoint.files import open_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="The checkpoint's folder")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="Plans built from it with --fp32")
    parser.add_argument(
        "--prompt",
        default="a small red circle to the left of a large blue square",
        help="Prompt of the images (default: %(default)s)",
    )
    parser.add_argument(
        "--edits",
        type=count,
        metavar="N",
        help="Compare N images that start from others instead, with masks of every kind, with diffusers in FP32",
    )


def run(args: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    pipeline = Pipeline.load(args.engines)
    checkpoint = open_checkpoint(str(args.model))
    require_same_weights(checkpoint, pipeline.manifest)
    if args.edits:
        finish("peers", {"edits": edits(EngineLoop(pipeline), Diffusers(checkpoint), args.edits)})
        return
    peers: dict[str, Runner] = {
        "diffusers FP32": Diffusers(checkpoint),
        "DiffSynth FP32": DiffSynth(checkpoint, torch.float32),
        "DiffSynth FP32, noise and timesteps in BF16": DiffSynth(checkpoint, torch.float32, bf16_inputs=True),
        "DiffSynth BF16, as shipped": DiffSynth(checkpoint),
    }
    figures = []
    for width, height in ((128, 128), (256, 192), (128, 256)):
        request = ImageRequest(args.prompt, width, height, seed=7)
        reference = pipeline.generate(request).pixels
        row = {name: decibels(reference, peer.generate([request])[0]) for name, peer in peers.items()}
        print(f"{width}x{height}:", ", ".join(f"{name} {db} dB" for name, db in row.items()))
        figures.append({"size": f"{width}x{height}", "psnr_db": row})
    finish("peers", {"images": figures})


def edits(loop: EngineLoop, diffusers: Diffusers, number: int) -> dict[str, Any]:
    """Compare images that start from others, print a row for each kind of mask, and return the figures."""
    wanted = track(islice(cases(), number), "images", total=number)
    found = [compare(case, loop, diffusers) for case in wanted]
    kinds = dict.fromkeys(sorted(compared.case.kind for compared in found))
    groups = {kind: [each for each in found if each.case.kind == kind] for kind in kinds}
    groups |= {"guided": [each for each in found if each.case.request.guidance_scale], "all": found}
    rows = {name: _summary(group) for name, group in groups.items() if group}
    for name, row in rows.items():
        print(f"{name}:", ", ".join(f"{key} {value}" for key, value in row.items()))
    return rows


def _summary(found: Sequence[Compared]) -> dict[str, Any]:
    levels = [min(compared.psnr_db, EQUAL_DB) for compared in found]
    return {
        "images": len(found),
        "worst_db": round(min(levels), 1),
        "median_db": round(float(np.median(levels)), 1),
        "forwards": sum(compared.forwards for compared in found),
        "diffusers_forwards": sum(compared.diffusers_forwards for compared in found),
    }
