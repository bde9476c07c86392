"""Probes of a plan directory: small inputs of each graph, the outputs that FP32 gives, and distances from them.

`export` writes the file. Knows arrays; not engines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import safetensors
import safetensors.numpy

from engine.array import Array
from engine.errors import PlanCorrupt
from engine.plan.manifest import Graph

PROBES_FILE = "probes.safetensors"

PATCH = 2  # latents of a token along an axis
TOKEN_PIXELS = 16  # pixels of a token along an axis
TINY = 1e-30  # in place of a length of 0
LEVEL = 1  # difference of integers that is rounding: both may be just beside .5


@dataclass(frozen=True, slots=True)
class Distance:
    """The distance of an output from the expected one.

    Attributes:
        whole: relative L2.
        row: largest relative L2 of a row, relative to the median length of rows where a row is shorter.
        gain: factor that scales the expected output to the best fit of the other one; 1 for a single number, of which
            `whole` says the same.
    """

    whole: float
    row: float
    gain: float

    @classmethod
    def between(cls, got: Array, expected: Array) -> Self:
        """Measure the distance of two tensors of one shape.

        Floats that are not finite give NaN. Integers count from a difference of more than one on.
        """
        exact = rows(expected).astype(np.float64)
        off = rows(got).astype(np.float64) - exact
        with np.errstate(invalid="ignore", over="ignore"):
            dot = float(np.vdot(off, exact))
            if expected.dtype.kind in "iu":
                off = np.sign(off) * np.maximum(np.abs(off) - LEVEL, 0)
            lengths, errors = np.linalg.norm(exact, axis=1), np.linalg.norm(off, axis=1)
            least, size = (max(float(length), TINY) for length in (np.median(lengths), np.linalg.norm(lengths)))
            whole, row = float(np.linalg.norm(errors)) / size, float((errors / np.maximum(lengths, least)).max())
        return cls(whole, row, 1 + dot / size**2 if expected.size > 1 else 1.0)


def rows(tensor: Array) -> Array:
    """Split a tensor into rows, [rows, elements].

    A row is a token of [B, L, D], a patch of latents [B, C, h, w], the pixels of a token of images [B, H, W, 3], and
    an element of [B].
    """
    if tensor.ndim != 4:
        return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)
    if tensor.shape[-1] == 3:
        batch, height, width, _ = tensor.shape
        side = TOKEN_PIXELS
        blocks = tensor.reshape(batch, height // side, side, width // side, side, 3).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(-1, side * side * 3)
    batch, channels, height, width = tensor.shape
    patches = tensor.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * PATCH * PATCH)


def read(directory: Path, graphs: Sequence[Graph]) -> dict[str, Array]:
    """Read the tensors of the graphs' probes by their keys.

    Raises:
        PlanCorrupt: the file is missing or damaged, or lacks a tensor.
    """
    file = directory / PROBES_FILE
    keys = {key for graph in graphs for probe in graph.probes for key in probe.inputs.values()}
    keys |= {expected.key for graph in graphs for probe in graph.probes for expected in probe.outputs.values()}
    if not keys:
        return {}
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            return {key: opened.get_tensor(key) for key in keys}
    except (OSError, safetensors.SafetensorError) as error:
        raise PlanCorrupt(f"{file} is not as it was built: {error}; build again") from error


def write(directory: Path, tensors: Mapping[str, Array]) -> None:
    """Write the file of probes."""
    contiguous = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    # save_file would make it readable by this user only, but the plans may be served by another
    (directory / PROBES_FILE).write_bytes(safetensors.numpy.save(contiguous))
