"""The part `weights`: the checked model's checkpoint, random weights in BF16, about 2 GB."""

import shutil

from benchmarks.gpu.findings import Findings, Settings
from benchmarks.gpu.model.checked_model import checkpoint_folder, sizes
from benchmarks.harness.report import Stopwatch
from export.checkpoint.files import Checkpoint, open_checkpoint
from nano.checkpoint import write_checkpoint
from nano.miniature import random_weights, tensor_shapes


def checkpoint(settings: Settings) -> Checkpoint:
    """Open the checkpoint that this part has written."""
    return open_checkpoint(str(checkpoint_folder(settings)))


def write(settings: Settings, found: Findings) -> None:
    """Make the weights on the device, one tensor at a time, and write them."""
    watch, wanted, folder = Stopwatch(), sizes(settings), checkpoint_folder(settings)
    shutil.rmtree(folder, ignore_errors=True)
    shapes = tensor_shapes(wanted)
    write_checkpoint(
        folder, wanted, {part: random_weights(own, wanted, settings.device) for part, own in shapes.items()}
    )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    parameters = checkpoint(settings).parameters
    found.add(parameters=parameters, gb=size / 1e9, seconds=watch.seconds)
    found.answer(f"{settings.layers} layers, {parameters / 1e9:.2f} B parameters, {size / 1e9:.2f} GB")
