"""Seconds of each stage: from a roofline, and from a report of measured ones."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.capacity.devices.gpus import gpu
from benchmarks.capacity.devices.measured_times import MeasuredTimes
from benchmarks.capacity.devices.reports import LatencyReport, LoadReport
from benchmarks.capacity.devices.roofline_times import RooflineTimes
from benchmarks.capacity.devices.source import Source
from engine.errors import InvalidRequest
from engine.size import Size

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
SQUARE, SMALL = Size(1024, 1024), Size(128, 128)


def measured() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / "2026-11-22-latency-cpu.json").read_text())
    return report


def of_latency(report: dict[str, Any]) -> MeasuredTimes:
    return MeasuredTimes.of_latency(msgspec.convert(report, LatencyReport))


def of_load(report: dict[str, Any]) -> MeasuredTimes:
    return MeasuredTimes.of_load(msgspec.convert(report, LoadReport, str_keys=True), default_steps=8)


def test_roofline_of_an_h100_is_the_floor_of_the_design_study_over_the_share() -> None:
    """0.58 s for 8 passes at the 798 TFLOP/s that were measured on one (facts of the design study)."""
    floor = RooflineTimes(gpu("H100").rates(), 1.0)
    image = 8 * floor.pass_seconds(SQUARE, 1, 128) + floor.decode_seconds(SQUARE) + floor.prompt_encoder_seconds(128)
    assert image * 989.4 / 798 == pytest.approx(0.58, abs=0.01)
    assert RooflineTimes(gpu("H100").rates(), 0.5).pass_seconds(SQUARE, 1, 128) == pytest.approx(
        2 * floor.pass_seconds(SQUARE, 1, 128)
    )


def test_every_image_pays_for_its_prompt() -> None:
    source, floor = Source.of_gpu(gpu("H100"), 1.0), RooflineTimes(gpu("H100").rates(), 1.0)
    device = 8 * floor.pass_seconds(SQUARE, 1, 128) + floor.decode_seconds(SQUARE) + floor.prompt_encoder_seconds(128)
    beside = source.costs.request + source.costs.response + source.costs.file * SQUARE.area / 1e6
    assert source.alone(SQUARE, 8) == pytest.approx(device + beside)


def test_roofline_batch_gains_only_where_weights_are_the_bound() -> None:
    times = RooflineTimes(gpu("RTX 4090").rates(), 0.45)
    assert times.pass_seconds(SQUARE, 4, 128) == pytest.approx(4 * times.pass_seconds(SQUARE, 1, 128))
    assert times.pass_seconds(SMALL, 4, 32) < 2.5 * times.pass_seconds(SMALL, 1, 32)


def test_encoding_an_edits_image_takes_time() -> None:
    times = RooflineTimes(gpu("L4").rates(), 0.45)
    assert 0 < times.encode_image_seconds(SQUARE) < times.decode_seconds(SQUARE)


def test_latency_report_gives_its_own_seconds_at_measured_sizes() -> None:
    report, times = measured(), of_latency(measured())
    case = next(case for case in report["figures"]["cases"] if case["width"] == 128)
    stages = case["runners"]["zimage-trt, onnx fp32"]["stages_s"]
    assert times.pass_seconds(SMALL, 1, 32) == stages["step"]["p50"]
    assert times.decode_seconds(SMALL) == stages["decode"]["p50"] + stages["copy"]["p50"]
    assert times.pass_seconds(SMALL, 1, 64) > times.pass_seconds(SMALL, 1, 32)
    assert 0 < times.spread < 0.5


def test_unmeasured_sizes_and_batches_are_between_or_in_proportion() -> None:
    times = MeasuredTimes(((100, ((1, 1.0), (4, 3.0))), (400, ((1, 4.0), (4, 12.0)))), None, 0.1, ((100, 0.5),))
    assert times.pass_seconds(Size(10, 10), 2, 32) == pytest.approx(1.0 + 2 / 3)
    assert times.pass_seconds(Size(10, 25), 1, 32) == pytest.approx(2.5)
    assert times.pass_seconds(Size(10, 80), 1, 32) == pytest.approx(8.0)
    assert times.pass_seconds(Size(10, 10), 8, 32) == pytest.approx(6.0)
    assert times.decode_seconds(Size(20, 10)) == pytest.approx(1.0)


def test_latency_report_without_our_plans_is_refused_with_what_it_has() -> None:
    report = measured()
    for case in report["figures"]["cases"]:
        del case["runners"]["zimage-trt, onnx fp32"]
    with pytest.raises(InvalidRequest, match=r"no times of zimage-trt, only of DiffSynth, .*measure with --engines"):
        of_latency(report)


def load_report() -> dict[str, Any]:
    """Return a report of two rungs at 128x128; passes of one image take 0.1 s."""

    def rung(users: int, latency: float, **server: Any) -> dict[str, Any]:
        return {
            "users": users,
            "rate": None,
            "images": 10 * users,
            "seconds": 60.0,
            "warmup_s": 6.0,
            "achieved_per_s": users / latency,
            "latency_s": {"mean": latency, "p50": latency, "p95": None},
            "queue_s": {"mean": 0.0, "p50": 0.0, "p95": None},
            "drawing_s": {"mean": 1.0, "p50": 1.0, "p95": None},
            "server": server,
        }

    kind = {"name": "128x128", "width": 128, "height": 128}
    calm = rung(1, 1.05, pass_s={"all": {"1": 0.1}}, batch={"counts": {"1": 30}})
    busy = rung(4, 3.0, pass_s={"all": {"1": 0.14, "2": 0.15}}, batch={"counts": {"1": 10, "2": 50}})
    workload = {"mix": [kind], "timeout_s": 60.0, "patience_s": 120.0, "think_s": 1.0}
    figures = {"target": {"server": {}}, "workload": workload, "rungs": [calm, busy]}
    return {"figures": figures, "hardware": {"cpu": "a CPU"}}


def test_load_report_gives_passes_by_batch_and_what_is_beside_them() -> None:
    times = of_load(load_report())
    assert times.pass_seconds(SMALL, 1, 32) == pytest.approx(0.11)
    assert times.pass_seconds(SMALL, 2, 32) == pytest.approx(0.15)
    assert times.decode_seconds(SMALL) == pytest.approx(1.0 - 8 * 0.11)
    assert times.overhead == pytest.approx(0.05)


def test_load_report_with_stages_takes_them() -> None:
    report = load_report()
    stages = {"prompt_encoder": 0.01, "vae_decoder": 0.04, "encode": 0.002, "denoiser": 0.92}
    report["figures"]["rungs"][0]["server"]["stage_s"] = stages
    times = of_load(report)
    assert (times.encoder, times.decode_seconds(SMALL), times.finishing) == (0.01, 0.04, 0.002)
    report["figures"]["rungs"][1]["server"]["stage_s"] = {"vae_decoder": 0.03, "denoiser": 9.0}
    busier = of_load(report)
    assert busier.decode_seconds(SMALL) == pytest.approx((10 * 0.04 + 40 * 0.03) / 50)
    assert busier.between == times.between == pytest.approx(0.92 / 8 - 0.11)


def test_spread_of_passes_gives_images_the_spread_that_was_measured() -> None:
    """Eight passes that vary independently vary by a square root of 8 less than one."""
    report = load_report()
    report["figures"]["rungs"][0]["drawing_s"] |= {"p95": math.exp(1.645 * 0.05)}
    assert of_load(report).spread == pytest.approx(0.05 * math.sqrt(8))


def test_load_report_of_another_server_is_refused() -> None:
    report = load_report()
    for rung in report["figures"]["rungs"]:
        rung["server"] = None
    with pytest.raises(InvalidRequest, match=r"no times of forward passes; measure zimage-serve"):
        of_load(report)


def test_load_report_of_several_sizes_is_refused() -> None:
    report = load_report()
    report["figures"]["workload"]["mix"].append({"name": "256x256", "width": 256, "height": 256})
    with pytest.raises(
        InvalidRequest, match=r"2 sizes together; measure a load of one size, or .* zimage-bench latency"
    ):
        of_load(report)
