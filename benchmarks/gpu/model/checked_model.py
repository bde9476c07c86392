"""The model that gpu-check works on: layers in Z-Image-Turbo's width, and what other parts have found out about it.

Its transformer has no refiner layers, so that a step is proportional to the layers. Text encoder and VAE are small: the
questions are about the denoiser, which takes nearly all of an image's time. Imports neither torch nor DiffSynth, which
take seconds in every part.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

from benchmarks.gpu.findings import CheckFailed, Figures, Settings, read_figures
from benchmarks.gpu.parts import FIRST
from engine.errors import PlanNotFound
from engine.plan.manifest import Flavor
from nano.layout import NANO, Z_IMAGE_TURBO, CheckpointSizes

LAYERS = Z_IMAGE_TURBO.n_layers  # of the whole model
PROMPT_TOKENS = 60  # of the inputs that are timed
LARGE_GB = 14.0  # free GPU memory from which 2048 is checked too: the VAE alone takes 8 GB there


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


def checkpoint_folder(settings: Settings) -> Path:
    """Return the folder of the checkpoint that the part `weights` writes."""
    return settings.folder / f"random-{settings.layers}-layers"


def timed_sides(settings: Settings) -> tuple[int, ...]:
    """Return the sides in pixels at which steps are timed, where a profile covers them."""
    return (64, 128) if settings.quick else (512, 1024, 2048)


def main_side(settings: Settings) -> int:
    """Return the side in pixels that most parts look at."""
    return 64 if settings.quick else 1024


def profiles(settings: Settings) -> tuple[str, ...]:
    """Return the profiles: one of 512 to 1024, and one for 2048 where it fits in memory."""
    if settings.quick:
        return "128,64", "256"
    free = read_figures(settings.folder, FIRST).get("free_gb", LARGE_GB)
    return ("1024,512", "2048") if free >= LARGE_GB else ("1024,512",)


def flavor(settings: Settings) -> Flavor:
    """Return the flavor that the part `machine` found."""
    found = read_figures(settings.folder, FIRST).get("flavor") or ("onnx" if settings.device == "cpu" else None)
    if found is None:
        raise CheckFailed("the part machine has found no flavor that runs here")
    return cast(Flavor, found)


def roofline(settings: Settings) -> Figures:
    """Return the least milliseconds of a step by side, which the part `machine` computed from the rates it measured."""
    found: Figures = read_figures(settings.folder, FIRST).get("roofline_ms", {})
    return found


def plan_directory(settings: Settings) -> Path:
    """Return the plan directory that the part `build-VARIANT` built.

    Raises:
        PlanNotFound: the part has not run, or has failed.
    """
    part = f"build-{settings.variant}"
    directory = read_figures(settings.folder, part).get("directory")
    if directory is None:
        raise PlanNotFound(f"the part {part} has built no plans in {settings.folder}")
    return Path(directory)
