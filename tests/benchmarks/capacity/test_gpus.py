"""GPUs by name, the arithmetic that their times follow from, and the share of it that others have reached."""

import statistics
import subprocess
import sys

import pytest

from benchmarks.capacity.devices.gpus import GPUS, gpu
from benchmarks.capacity.devices.published import PUBLISHED, REACHED
from benchmarks.capacity.devices.roofline_times import full_size_arithmetic
from engine.errors import InvalidRequest


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "rtx-4090"])
def test_gpu_is_found_by_its_name_in_any_spelling(name: str) -> None:
    assert gpu(name).name == "RTX 4090"


def test_unknown_gpu_is_refused_with_the_known_ones_and_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match=r"L4, A10G, L40S, RTX 4090, H100, H200, got 'RTX 2080'.*--service-times"):
        gpu("RTX 2080")


def test_sums_in_fp16_double_the_rate_of_consumer_gpus_only() -> None:
    doubled = {known.name for known in GPUS if known.fp16_sums_tflops > 1.9 * known.fp16_tflops}
    assert doubled == {"RTX 4090"}
    assert gpu("RTX 4090").rates(fp16_sums=True).flops == 330.3e12


def test_default_share_is_the_median_of_what_others_have_published() -> None:
    shares = [published.share for published in PUBLISHED]
    assert statistics.median(shares) == pytest.approx(REACHED, abs=0.005)
    assert min(shares) > 0.27 and max(shares) < 0.59


def test_image_encoder_counts_the_weights_of_the_vae() -> None:
    assert full_size_arithmetic().encode_image(512, 512).weights == pytest.approx(34.3e6, rel=2e-2)


def test_capacity_of_a_named_gpu_needs_no_pytorch() -> None:
    code = "import sys; import benchmarks.capacity.devices.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
