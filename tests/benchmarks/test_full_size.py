"""Z-Image-Turbo's sizes, as far as 2 cores, 24 GB and no GPU allow; each part in a process of its own.

`zimage-bench full-size` measures how long they take.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def full_size(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cli", "full-size", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["figures"]
    print(figures)
    return figures


def test_whole_denoiser_is_traced_from_configs_alone() -> None:
    """The prompt encoder is traced the same way: `zimage-bench full-size prompt_encoder`."""
    figures = full_size("denoiser")
    # 6,154,908,736 without the prompt's half (context_refiner 353.9 M, cap_embedder 9.8 M, pad token)
    assert figures["parameters"] == 5_791_142_464
    assert figures["peak_rss_bytes"] <= 2e9


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
