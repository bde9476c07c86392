"""Guided images in the configuration of Z-Image, with its time shift and number of steps, against those of diffusers.

The checkpoint is z-image-nano with Z-Image's scheduler; `zimage-bench guidance` compares more of them.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.guidance import NEGATIVE, compare
from benchmarks.harness.eager import Diffusers
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.scheduler.loop import EngineLoop
from export.build import BuildOptions, describe_model
from export.checkpoint.files import open_checkpoint


@pytest.fixture(scope="module")
def z_image(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """z-image-nano with the time shift of Tongyi-MAI/Z-Image."""
    copy = shutil.copytree(checkpoint, tmp_path_factory.mktemp("checkpoint") / "z-image-nano")
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 6.0}))
    return copy


@pytest.fixture(scope="module")
def pipeline(z_image: Path, engines: Path) -> Iterator[Pipeline]:
    """The plans of z-image-nano, whose graphs are the same, with what a build finds in this checkpoint."""
    facts = describe_model(open_checkpoint(str(z_image)), BuildOptions(str(z_image), engines))
    with Pipeline.load(engines) as loaded:
        yield Pipeline(replace(loaded.manifest, model=facts), loaded.tokenize, loaded.backend)


@pytest.fixture(scope="module")
def diffusers(z_image: Path) -> Diffusers:
    return Diffusers(open_checkpoint(str(z_image)))


def test_defaults_are_those_of_z_image(pipeline: Pipeline) -> None:
    model = pipeline.manifest.model
    assert (model.schedule_shift, model.default_steps, model.default_guidance) == (6.0, 50, 4.0)
    assert ImageRequest("a").forwards(pipeline.manifest) == 100


@pytest.mark.parametrize(
    ("width", "height", "steps", "negative", "normalization", "truncation"),
    [
        (64, 64, 28, NEGATIVE[1], 0.0, 1.0),
        (96, 64, 8, NEGATIVE[2], 1.0, 1.0),  # of another padded length
        (80, 64, 8, NEGATIVE[0], 0.5, 0.3),
        (64, 96, 8, NEGATIVE[2], 0.0, 0.1),
    ],
)
def test_guided_image_equals_that_of_diffusers(
    pipeline: Pipeline,
    diffusers: Diffusers,
    width: int,
    height: int,
    steps: int,
    negative: str,
    normalization: float,
    truncation: float,
) -> None:
    """40 dB is the goal; docs/findings.md has the distances that `zimage-bench guidance` measured."""
    request = ImageRequest(
        "a red circle on a green background",
        width,
        height,
        seed=7,
        num_inference_steps=steps,
        negative_prompt=negative,
        guidance_scale=4.0,
        cfg_normalization=normalization,
        cfg_truncation=truncation,
    )
    found = compare(request, EngineLoop(pipeline), diffusers)
    assert found.psnr_db > 60
    assert found.forwards == found.diffusers_forwards


def test_models_guidance_is_that_of_a_request_without_one(pipeline: Pipeline) -> None:
    request = ImageRequest("a red circle", 64, 64, seed=3, num_inference_steps=4)
    images = [
        EngineLoop(pipeline).generate(replace(request, guidance_scale=scale)).pixels.tobytes()
        for scale in (None, 4.0, 0.0)
    ]
    assert images[0] == images[1] != images[2]
