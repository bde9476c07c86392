"""Plans of the stand-in engine: a manifest, pass times, and what each image looks like. Knows no processes."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.harness.bare_manifest import MODEL, bare_manifest
from benchmarks.harness.pixels import Pixels
from engine.plan import directory
from engine.plan.manifest import File, PreviewProjection, Range
from engine.request import ImageRequest
from engine.scheduler.batch_table import BatchTable, PassTimes

BLOCK = MODEL.vae_scale  # pixels; a block has one colour
PLAN_FILE = "stand_in.plan"
TIMES_FILE = "pass_times.json"
SIDES = Range(64, 128, 256)
MANIFEST = replace(
    bare_manifest(replace(MODEL, name="stand-in"), SIDES, max_batch=4, file=PLAN_FILE),
    plan_id="57a9d1457a9d",
    preview=PreviewProjection(((8.0, 8.0, 8.0),) * 16, (0.0, 0.0, 0.0), 1.0),
)


def write_plans(folder: Path, times: Sequence[PassTimes], plan_id: str = MANIFEST.plan_id) -> Path:
    """Write a plan directory whose engine takes the given time for each pass; return the folder.

    Args:
        times: seconds of a pass by batch, for each size that is asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / PLAN_FILE
    plan.write_bytes(b"The stand-in engine sleeps instead of running this.\n")
    listed = File(PLAN_FILE, plan.stat().st_size, directory.sha256(plan))
    manifest = replace(MANIFEST, plan_id=plan_id, files=(listed,))
    (folder / TIMES_FILE).write_bytes(msgspec.json.encode(BatchTable("stand-in", tuple(times))))
    (folder / directory.MANIFEST_FILE).write_bytes(directory.encode(manifest))
    return folder


def read_times(folder: Path) -> BatchTable:
    """Read the pass times of a plan directory of `write_plans`."""
    return msgspec.json.decode((folder / TIMES_FILE).read_bytes(), type=BatchTable)


def picture(request: ImageRequest, steps: int) -> Pixels:
    """Return the image of a request, [height, width, 3]: any other request, or another number of steps, has another.

    Args:
        steps: steps that were really run.
    """
    size = request.size(MANIFEST)
    start = None if request.edit is None else (request.edit.image, request.edit.strength)
    facts = (request.prompt, request.negative_prompt, str(size), request.seed, steps, request.guidance(MANIFEST), start)
    digest = hashlib.sha256(msgspec.json.encode((*facts, request.lora, request.lora_strength))).digest()
    blocks = (size.height // BLOCK, size.width // BLOCK, 3)
    colours = np.random.default_rng(list(digest)).integers(0, 256, blocks, np.uint8)
    return np.ascontiguousarray(colours.repeat(BLOCK, 0).repeat(BLOCK, 1))
