"""Images of the same prompt and seed by the peers, and the sources of their differences.

diffusers in FP32 generates the same image. DiffSynth as shipped generates its noise, rounds its timesteps and keeps its
latents in BF16. `export.compile.parity` compares with DiffSynth's modules on FP32 timesteps and latents.
"""

import argparse
import logging
from pathlib import Path

import torch

from benchmarks.harness.eager import DiffSynth, Diffusers
from benchmarks.harness.pixels import decibels
from benchmarks.harness.report import finish
from benchmarks.harness.runner import Runner
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from export.checkpoint.files import open_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="The checkpoint's folder")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="Plans built from it with --fp32")
    parser.add_argument(
        "--prompt",
        default="a small red circle to the left of a large blue square",
        help="Prompt of the images (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    pipeline = Pipeline.load(args.engines)
    checkpoint = open_checkpoint(str(args.model))
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
