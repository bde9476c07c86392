"""Reports that people give by mistake: each is refused in one sentence that says what was got and what to give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.capacity.devices.reports import read_load_report, read_report
from benchmarks.capacity.devices.source import Source
from benchmarks.cli import main
from engine.errors import InvalidRequest

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
LOAD, LATENCY = RESULTS / "2026-12-01-load-serve-cpu.json", RESULTS / "2026-11-22-latency-cpu.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is no JSON \(Expecting value.*\); give one of zimage-bench latency \(--json\) or load \(--output\)"),
        ("{}", "is JSON, but no report of zimage-bench; give one of"),
        ("[]", "is JSON, but no report of zimage-bench; give one of"),
        ('{"benchmark": "encode"}', "is a report of zimage-bench encode, which does not measure service times; give"),
        ('{"benchmark": "load"}', "no report of zimage-bench load of this version: .*`figures`; measure again"),
        ('{"benchmark": "latency", "figures": null}', r"got `null` - at `\$.figures`; measure again"),
    ],
)
def test_file_without_a_report_is_refused_with_what_to_give(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_report(path)


def no_rungs(figures: dict[str, Any]) -> None:
    figures["rungs"] = []


def no_latency(figures: dict[str, Any]) -> None:
    figures["rungs"][1]["latency_s"] = None


def long_warmup(figures: dict[str, Any]) -> None:
    figures["rungs"][0]["warmup_s"] = 60.0


def two_loads(figures: dict[str, Any]) -> None:
    figures["rungs"][0]["rate"] = 1.0


def unknown_kind(figures: dict[str, Any]) -> None:
    figures["workload"]["mix"][0]["colour"] = "red"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_rungs, r"length >= 1 - at `\$.figures.rungs`"),
        (no_latency, r"got `null` - at `\$.figures.rungs\[1\].latency_s`"),
        (long_warmup, "a warm-up is shorter than its rung of 60 s, got 60 s"),
        (two_loads, "a rung has either users or a rate"),
        (unknown_kind, r"unknown field `colour` - at `\$.figures.workload.mix\[0\]`"),
    ],
)
def test_damaged_load_report_is_refused_with_the_figure(
    damage: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    report = json.loads(LOAD.read_text())
    damage(report["figures"])
    path = tmp_path / "load.json"
    path.write_text(json.dumps(report))
    with pytest.raises(InvalidRequest, match=message):
        read_load_report(path)


def test_report_without_answers_has_no_times(tmp_path: Path) -> None:
    report = json.loads(LOAD.read_text())
    for rung in report["figures"]["rungs"]:
        rung["drawing_s"] = {"p50": None, "p95": None, "mean": None}
    path = tmp_path / "load.json"
    path.write_text(json.dumps(report))
    with pytest.raises(InvalidRequest, match="no request that zimage-serve answered; measure again with fewer users"):
        Source.of_report(path)


def test_prediction_of_a_latency_report_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"is a report of zimage-bench latency; give one of load \(--output\)"):
        read_load_report(LATENCY)


def test_missing_file_ends_the_command_with_status_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        main(["capacity", "--service-times", "nowhere.json", "--users", "1"])
    assert exit_of.value.code == 2
    out, err = capsys.readouterr()
    assert (
        out == "" and err.startswith("zimage-bench: nowhere.json cannot be read (No such file") and "\n" not in err[:-1]
    )


def test_models_own_steps_and_guidance_are_those_of_the_measured_server(tmp_path: Path) -> None:
    report = json.loads(LOAD.read_text())
    report["figures"]["target"]["server"] |= {"num_inference_steps": 28, "default_guidance": 4.0}
    path = tmp_path / "load.json"
    path.write_text(json.dumps(report))
    source = Source.of_report(path)
    assert (source.steps, source.guidance) == (28, 4.0)
