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
        "queue_s": {"mean": 0.0},
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
    assert {moment["ready"] for moment in alone["timeline"]} == {0, 1}


def test_situation_of_users_who_wait_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        main(["capacity", "--gpu", "H100", "--users", "2", "--scenario", "daily", *QUICK])
    assert "--scenario daily needs --rate" in f"{exit_of.value}{capsys.readouterr().err}"


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


def test_report_is_also_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "capacity.json"
    main(["capacity", "--gpu", "H100", "--rate", "0.2", "--output", str(output), *QUICK])
    assert json.loads(output.read_text())["figures"] == report_of(capsys)[1]


def test_workload_without_users_and_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        main(["capacity", "--gpu", "H100"])
    assert "as --users, who wait for their images, or as --rate" in f"{exit_of.value}{capsys.readouterr().err}"


def test_report_of_another_benchmark_has_no_service_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "encode.json"
    other.write_text('{"benchmark": "encode", "figures": {}}')
    with pytest.raises(SystemExit) as exit_of:
        main(["capacity", "--service-times", str(other), "--users", "1"])
    assert "give one of latency or load" in f"{exit_of.value}{capsys.readouterr().err}"


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
