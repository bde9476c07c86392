"""Z-Image-Turbo's sizes, as far as 2 cores, 24 GB and no GPU allow; each part in a process of its own.

`zimage-bench full-size` measures how long they take.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WHOLE = 5_791_142_464  # parameters, without the prompt's half (context_refiner 353.9 M, cap_embedder 9.8 M, pad token)
LAYER = 180_910_336  # parameters, of the products 176.9 M
TRACED = 8  # of its 30 layers; they are equal, and each takes more than a second
OF_FEWER_LAYERS = f"""
from dataclasses import replace
from benchmarks import cli, full_size
full_size.Z_IMAGE_TURBO = replace(full_size.Z_IMAGE_TURBO, n_layers={TRACED})
cli.main(["full-size", "denoiser"])
"""


def full_size(*arguments: str) -> dict[str, Any]:
    return figures_of("-m", "benchmarks.cli", "full-size", *arguments)


def figures_of(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["figures"]
    print(figures)
    return figures


def test_denoiser_of_full_width_is_traced_from_configs_alone() -> None:
    """With its refiners and some of its layers. All of it, and the prompt encoder: `zimage-bench full-size`."""
    figures = figures_of("-c", OF_FEWER_LAYERS)
    assert figures["parameters"] == WHOLE - (30 - TRACED) * LAYER
    assert figures["peak_rss_bytes"] <= 2e9 < TRACED * LAYER * 2  # bytes of their weights in FP16


def test_full_vae_decoder_is_built_into_a_plan() -> None:
    figures = full_size("vae_decoder", "--build")
    assert figures["weight_bytes"] > 49.5e6 * 2  # BF16
    assert figures["plan_bytes"] > 0.99 * figures["weight_bytes"]


def test_full_width_layer_is_stored_once_for_both_default_profiles_with_fused_attention() -> None:
    figures = full_size("denoiser", "--build", "--layers", "1")
    assert figures["weight_bytes"] > 176.9e6 * 2  # FP16
    assert 1 < figures["ratio"] == round(figures["plan_bytes"] / figures["weight_bytes"], 3) <= 1.1
    assert figures["activation_bytes"].keys() == {"usual", "large"}
    tokens, heads = 128 * 128 + 512, 30
    assert figures["activation_bytes"]["large"] < 2 * heads * tokens**2 / 4  # a quarter of one S x S matrix
