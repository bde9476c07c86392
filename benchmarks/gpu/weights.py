"""The checkpoint that gpu-check works on: random weights in Z-Image-Turbo's width with few layers, about 2 GB in BF16.

Its transformer has no refiner layers, so that a step is proportional to the layers. Text encoder and VAE are small: the
questions are about the denoiser, which takes nearly all of an image's time.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.findings import Findings, Settings
from benchmarks.harness.report import Stopwatch
from export.checkpoint.files import Checkpoint, open_checkpoint
from nano.checkpoint import write_checkpoint
from nano.layout import NANO, Z_IMAGE_TURBO, CheckpointSizes
from nano.miniature import random_weights, tensor_shapes

LAYERS = Z_IMAGE_TURBO.n_layers  # of the whole model


def sizes(settings: Settings) -> CheckpointSizes:
    """Return the sizes of the checkpoint; those of z-image-nano if quick."""
    width = replace(NANO, sample_size=128) if settings.quick else Z_IMAGE_TURBO
    return replace(
        width,
        n_layers=settings.layers,
        n_refiner_layers=0,
        text_layers=2,
        vocab_size=NANO.vocab_size,
        block_out_channels=NANO.block_out_channels,
        norm_num_groups=NANO.norm_num_groups,
        dtype="bfloat16",
        shards=1,
    )


def folder(settings: Settings) -> Path:
    """Return the checkpoint's folder."""
    return settings.folder / f"random-{settings.layers}-layers"


def checkpoint(settings: Settings) -> Checkpoint:
    """Open the checkpoint that the part `weights` has written."""
    return open_checkpoint(str(folder(settings)))


def write(settings: Settings, found: Findings) -> None:
    """Make the weights on the device, one tensor at a time, and write them."""
    watch, wanted = Stopwatch(), sizes(settings)
    shutil.rmtree(folder(settings), ignore_errors=True)
    shapes = tensor_shapes(wanted)
    write_checkpoint(
        folder(settings), wanted, {part: random_weights(own, wanted, settings.device) for part, own in shapes.items()}
    )
    files = [file for file in folder(settings).rglob("*") if file.is_file()]
    size, parameters = sum(file.stat().st_size for file in files), checkpoint(settings).parameters
    found.add(parameters=parameters, gb=size / 1e9, seconds=watch.seconds)
    found.answer(f"{settings.layers} layers, {parameters / 1e9:.2f} B parameters, {size / 1e9:.2f} GB")
