"""`zimage-bench capacity`: from a GPU and a workload to a number of GPUs, and from a report to predictions of it."""

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.devices.source import Source
from benchmarks.capacity.prediction import CLIENTS
from benchmarks.cli import main
from benchmarks.simulation.scenario import ClosedLoop
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.mix import Mix

QUICK = ("--minutes", "2", "--seeds", "1", "--gpus", "1..8")


def report_of(capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    """Return what was printed before the last line, and the report in the last line."""
    printed, last = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    return printed, json.loads(last)["figures"]


def calibration(folder: Path, pass_s: dict[str, float]) -> Path:
    """Write a load report of one calm rung, from which service times are read."""
    rung = {
        "users": 1,
        "rate": None,
        "images": 60,
        "seconds": 60.0,
        "warmup_s": 6.0,
        "achieved_per_s": 1.0,
        "latency_s": {"mean": 1.0, "p50": 1.0, "p95": 1.0},
        "queue_s": {"mean": 0.0, "p50": 0.0, "p95": 0.0},
        "drawing_s": {"mean": 0.99, "p50": 0.99, "p95": 0.99},
        "server": {"pass_s": {"all": pass_s}, "stage_s": {"prompt_encoder": 0.01, "vae_decoder": 0.1, "encode": 0.01}},
    }
    return written(folder / "calibration.json", Mix.sizes("128x128"), [rung])


def written(path: Path, mix: Mix, rungs: list[dict[str, Any]]) -> Path:
    workload = {
        "mix": msgspec.to_builtins(mix.kinds),
        "loop": "closed",
        "think_s": 0.5,
        "timeout_s": 60.0,
        "patience_s": 120.0,
    }
    sizes = [{"size": "128x128", "best_batch": 4, "speedup": 2.0}]
    server = {"batching": [{"device": "cpu", "state": "measured", "sizes": sizes}]}
    figures = {"target": {"server": server}, "workload": workload, "rungs": rungs}
    report = {"benchmark": "load", "figures": figures, "hardware": {"cpu": "a CPU"}}
    path.write_text(json.dumps(report))
    return path


def measured_like(folder: Path, service_times: Path) -> Path:
    """Write the report of a server that behaves as simulated, with images of 128x128 for one user and for eight."""
    rungs = []
    for users in (1, 8):
        deployment = Deployment(
            source=Source.of_report(service_times),
            mix=Mix.sizes("128x128"),
            load=ClosedLoop(users, 0.5, clients=CLIENTS),
            seconds=60.0,
            warmup=6.0,
            has_different_prompts=False,
        )
        figures = simulate(deployment.scenario(deployment.embedded(1), seed=7)).figures
        rungs.append({"users": users, "rate": None, **msgspec.to_builtins(figures)})
    return written(folder / "load.json", deployment.mix, rungs)


def test_workload_gets_the_fewest_gpus_with_settings_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["capacity", "--gpu", "H100", "--users", "6", "--slo", "p95=2.5s,success=99", "--price", "H100=3", *QUICK])
    printed, figures = report_of(capsys)
    (device,) = figures["devices"]
    met = [trial["gpus"] for trial in device["trials"] if trial["is_met"]]
    missed = [trial["gpus"] for trial in device["trials"] if not trial["is_met"]]
    assert device["gpus"] == min(met) == max(missed) + 1 > 1
    assert device["simulated"]["latency_s"]["p95"] <= 2.5
    images_per_hour = 3600 * device["simulated"]["achieved_per_s"]
    assert device["cost_per_thousand_images"] == pytest.approx(3 * device["gpus"] * 1000 / images_per_hour)
    assert device["settings"]["queue"] >= device["settings"]["jobs_per_gpu"] * device["gpus"]
    assert "not measured" in printed and device["is_measured"] is False


def test_lost_host_is_borne_by_one_in_reserve(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--slo", "p50=3s", "--price", "2", "--scenario", "rack-lost")
    main(["capacity", "--gpu", "H100", "--rate", "0.2", *arguments, *QUICK])
    alone, reserve = report_of(capsys)[1]["responses"]["H100, rack-lost"]
    assert (alone["fleet"], reserve["fleet"]) == ("1 GPU", "2 GPUs, of which 1 in reserve")
    assert alone["simulated"]["success_percent"] < 95 and reserve["simulated"]["success_percent"] == 100
    assert reserve["cost"] > alone["cost"] > 0
    images = 3600 * reserve["simulated"]["achieved_per_s"]
    assert reserve["cost_per_thousand_images"] == pytest.approx(1000 * reserve["cost"] / images)
    assert {moment["ready"] for moment in alone["timeline"]} == {0, 1}
    assert len(alone["timeline"]) == 59  # fewer than elsewhere, since few requests end in ten seconds


LOAD = "benchmarks/results/2026-12-01-load-serve-cpu.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--gpu H100 --users 2 --scenario daily", "--scenario daily needs --rate: users who wait"),
        ("--gpu H100 --rate 2 --think 3", "--think has no effect with --rate; leave one of them out"),
        ("--gpu H100 --users 2 --devices 2", "--devices has no effect without --validate; for numbers of GPUs give"),
        ("--gpu H100 --users 2 --price L4=1", "--price names L4, which is not among --gpu H100; leave it out"),
        ("--gpu H100 --users 2 --gpus 5..7", "allow 4 or 8 (--gpus), or change --gpus-per-host"),
        ("--gpu H100 --users 2 --size 1000x1000", "height must be a multiple of 16, got 1000"),
        ("--gpu H100", "give the load as --users, who wait for their images, or as --rate"),
        (f"--service-times {LOAD} --users 2 --price L4=1", "--price L4=... needs --gpu; with --service-times give one"),
        (f"--service-times {LOAD} --users 2 --reached 0.5", "--reached has no effect with --service-times"),
        (f"--service-times {LOAD} --users 2 --fp16-sums", "--fp16-sums has no effect with --service-times"),
        (f"--service-times {LOAD} --validate {LOAD} --users 2", "--users has no effect with --validate"),
        (f"--service-times {LOAD} --validate {LOAD} --html x.html", "--html has no effect with --validate"),
        (f"--gpu H100 --validate {LOAD}", "--validate needs --service-times"),
        ("--gpu L4,L4 --users 2", "must be different GPUs, got L4 twice"),
        ("--gpu H100 --users 2 --gpus 1..", "must be a whole number of at least 1, got ''"),
        ("--gpu H100 --users 2 --price all=1", "GPU must be one of L4, A10G"),
        ("--gpu H100 --users 2 --size 512,512", "kinds must have different names, got '512x512' twice"),
        ("--gpu H100 --users 2 --mix nowhere.toml", "nowhere.toml cannot be read (No such file or directory)"),
        ("--gpu H100 --users 2 --slo success=101", "success is 100 % at most, got 'success=101'"),
    ],
)
def test_wrong_arguments_end_with_status_2_and_what_to_do(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_of:
        main(["capacity", "--minutes", "0.1", "--seeds", "1", *arguments.split()])
    assert exit_of.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1]


def test_report_that_cannot_be_written_is_refused_before_the_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"cannot write .*/nowhere/capacity\.html"):
        main(
            ["capacity", "--gpu", "H100", "--users", "1", *QUICK, "--html", str(tmp_path / "nowhere" / "capacity.html")]
        )
    assert capsys.readouterr().out == ""


def test_single_user_waits_as_long_as_one_image_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """With the prompt encoder, since no prompt comes twice, and with HTTP and the file."""
    main(["capacity", "--gpu", "L4", "--users", "1", "--slo", "p50=20s", *QUICK])
    (device,) = report_of(capsys)[1]["devices"]
    assert device["simulated"]["latency_s"]["p50"] == pytest.approx(device["alone_s"], rel=0.01)


def test_gpu_that_is_too_slow_for_one_image_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["capacity", "--gpu", "A10G", "--users", "1", "--slo", "p50=5s", *QUICK])
    printed, figures = report_of(capsys)
    assert figures["devices"][0]["gpus"] is None and figures["devices"][0]["settings"] is None
    assert "One image alone takes 14.7 s; more GPUs do not shorten it." in printed
    assert figures["devices"][0]["trials"] == []


def test_rate_beyond_all_gpus_is_told_without_a_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    main(["capacity", "--gpu", "H100", "--rate", "1e6", "--price", "3", *QUICK])
    (device,) = report_of(capsys)[1]["devices"]
    assert device["gpus"] is device["cost_per_hour"] is None and device["trials"] == []
    assert device["limit"] == "8 GPUs are too few: arrivals keep 1.04M busy; allow more (--gpus)."


def test_percentile_of_too_few_requests_asks_for_a_longer_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    main(["capacity", "--gpu", "H100", "--users", "1", "--slo", "p99=9s", "--minutes", "1", "--gpus", "1"])
    (device,) = report_of(capsys)[1]["devices"]
    assert device["limit"] == "p99 unknown: 28 simulated requests are too few; simulate longer (--minutes)."


def test_least_allowed_number_that_is_enough_is_not_called_the_fewest(capsys: pytest.CaptureFixture[str]) -> None:
    main(["capacity", "--gpu", "H100", "--users", "1", "--slo", "p50=9s", *QUICK, "--gpus", "3..4"])
    (device,) = report_of(capsys)[1]["devices"]
    assert device["limit"] == "3 GPUs are enough; fewer were not simulated, since --gpus begins with them."


def test_report_is_also_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "capacity.json"
    main(["capacity", "--gpu", "H100", "--rate", "0.2", "--output", str(output), *QUICK])
    assert json.loads(output.read_text())["figures"] == report_of(capsys)[1]


def test_prediction_of_a_server_that_behaves_as_simulated_is_close(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = calibration(tmp_path, {"1": 0.1, "4": 0.2})
    measured = measured_like(tmp_path, times)
    main(["capacity", "--service-times", str(times), "--validate", str(measured)])
    printed, figures = report_of(capsys)
    assert figures["validation"]["is_close"], printed
    assert {row["rung"] for row in figures["validation"]["comparisons"]} == {"1 user", "8 users"}


@pytest.mark.parametrize(("state", "is_close"), [("measured", True), ("none", False)])
def test_prediction_batches_as_the_servers_devices_did(
    state: str, is_close: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = calibration(tmp_path, {"1": 0.1, "4": 0.2})
    measured = measured_like(tmp_path, times)
    report = json.loads(measured.read_text())
    report["figures"]["target"]["server"]["batching"][0]["state"] = state
    measured.write_text(json.dumps(report))
    with contextlib.suppress(SystemExit):
        main(["capacity", "--service-times", str(times), "--validate", str(measured)])
    assert report_of(capsys)[1]["validation"]["is_close"] == is_close


def test_prediction_with_another_policy_misses_with_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = calibration(tmp_path, {"1": 0.1, "4": 0.2})
    measured = measured_like(tmp_path, times)
    with pytest.raises(SystemExit) as exit_of:
        main(["capacity", "--service-times", str(times), "--validate", str(measured), "--change", "no-batch"])
    assert exit_of.value.code == 3
    printed, _ = report_of(capsys)
    assert "miss the measurement by more than 10 %" in printed
