"""z-image-nano in all variants of `zimage-bench parity`, against float64 and before the judge."""

from pathlib import Path

import pytest

from benchmarks import judge
from benchmarks.parity import REQUESTS, VARIANTS, Variants, plot
from engine.pipeline import Pipeline
from engine.size import Size
from export.checkpoint.files import open_checkpoint

CAPTIONS = 10  # benchmarks/results has 200

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def variants(checkpoint: Path, plan_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Variants:
    return Variants(open_checkpoint(str(checkpoint)), plan_directory, tmp_path_factory.mktemp("precisions"))


def test_fp16_is_five_times_closer_than_bf16(variants: Variants, tmp_path: Path) -> None:
    found = variants.compare(REQUESTS[0])  # benchmarks/results has the other one
    print(found)
    for graph in ("prompt_encoder", "denoiser"):
        assert 0 < found["fp32"][graph] < 1e-5 < found["fp16"][graph] < found["bf16"][graph] / 5
    assert found["fp16"]["denoiser"] < found["fp16, summed in fp16"]["denoiser"] < found["bf16"]["denoiser"]
    assert found["fp32"]["psnr_db"] > 60
    assert min(found[name]["psnr_db"] for name in VARIANTS) > 45  # but for FP32, with a VAE in BF16, which costs most
    assert all(len(found[name]["steps"]) == 8 for name in VARIANTS)
    plot({"an image": found}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_judge_scores_fp16_as_high_as_fp32(variants: Variants, engines: Path) -> None:
    """At most one statement of an attribute differs, over captions that were never trained on."""
    exact = judge.score(Pipeline.load(engines), Size(128, 128), CAPTIONS)["all"]
    half = judge.score(variants["fp16"].pipeline, Size(128, 128), CAPTIONS)["all"]
    print(exact, half)
    assert min(exact.values()) > 0.9
    assert all(abs(half[attribute] - exact[attribute]) <= 1 / CAPTIONS for attribute in exact)
