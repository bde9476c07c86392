"""`zimage-bench verify`: its folders, the widths of its probes, and what it extrapolates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import verify
from benchmarks.cli import main
from benchmarks.full_size import graph_of
from benchmarks.harness.source import random_components
from engine.plan.manifest import padded
from export.checkpoint.files import Checkpoint
from export.compile.probe_inputs import ProbeInputs
from nano.layout import NANO, Z_IMAGE_TURBO


def test_seconds_of_all_layers_are_in_proportion_to_their_number() -> None:
    """Two layers and two refiners of each transformer were measured; 30 and 35 are used, and two refiners."""
    seconds = {"prompt_encoder": 4.0, "denoiser": 8.0, "guidance": 0.25, "vae_decoder": 1.0}
    assert verify.extrapolated(seconds, 2, Z_IMAGE_TURBO) == pytest.approx(37.0 + 64.0 + 0.25 + 1.0, abs=0.1)


def test_files_are_kept_for_the_same_options_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def measure(_sizes: object, _precision: str, folder: Path) -> dict[str, Any]:
        folders.append(folder)
        return {"seconds": {}, "core_seconds": {}}

    monkeypatch.setattr(verify, "measure", measure)
    for options in ([], [], ["--bf16"], ["--small"], ["--layers", "2"]):
        main(["verify", "--folder", str(tmp_path), *options])
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4 and all(folder.parent == tmp_path and folder.is_dir() for folder in folders)


def test_probes_have_the_widths_of_small_models() -> None:
    checkpoint = Checkpoint("random", Path(), **random_components(NANO), scheduler={})
    made = ProbeInputs(checkpoint, verify.plans_of(NANO, "fp16"))
    embeds = {
        (shape.batch, padded(shape.tokens)): np.ones((shape.batch, padded(shape.tokens), NANO.dim), np.float32)
        for shape in made.shapes
    }
    denoiser = graph_of(NANO, "denoiser", "fp16")
    for inputs in made.make("denoiser", embeds).values():
        for spec in denoiser.inputs:
            widths = [
                (size, found)
                for size, found in zip(spec.shape, inputs[spec.name].shape, strict=True)
                if isinstance(size, int)
            ]
            assert all(size == found for size, found in widths), spec
