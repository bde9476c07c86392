"""The command that goes on: what a part finds, what it says when it fails, hangs or dies."""

import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import get_args

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.cli import main
from engine.plan.manifest import GraphName
from export.compile.parity import LEVELS_TOLERANCE

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")


def part(name: str) -> gpu_check.Part:
    return next(part for part in gpu_check.PARTS if part.name == name)


@pytest.mark.parametrize(
    ("done", "found"),
    [
        (CompletedProcess([], 0, 'chatter\nresult: {"worst": 0.5}\n', ""), {"worst": 0.5}),
        (
            CompletedProcess([], 1, "out\n", "first\nValueError: last\n\n"),
            {"failed": "ValueError: last", "output": "out\nfirst\nValueError: last\n\n"},
        ),
        (
            CompletedProcess([], -11, "", ""),
            {"failed": "killed by signal 11; no error output", "output": ""},
        ),
    ],
)
def test_part_process_becomes_figures_or_a_failure(done: "CompletedProcess[str]", found: dict[str, object]) -> None:
    assert gpu_check._read(done) == found


def test_part_that_hangs_is_ended(tmp_path: Path) -> None:
    args = Namespace(folder=tmp_path, device="cpu", size="nano", layers=1, quick=True)
    found = gpu_check._run_part(replace(part("onnx"), seconds=1), args)
    assert found["failed"] == "timed out after 1 s"


def test_report_names_failed_parts_and_reasons(tmp_path: Path) -> None:
    gpu_check._write(
        tmp_path,
        {
            "rtx": {"failed": "BackendUnavailable: no", "output": "long story", "part_seconds": 1.0},
            "parity": {"relative_l2": {"denoiser": 0.00123456}, "worst": 0.00123456, "part_seconds": 2.0},
        },
    )
    text = (tmp_path / "report.md").read_text()
    assert "**Failed**: BackendUnavailable: no" in text
    assert "long story" in text
    assert "relative_l2: denoiser 0.001235" in text
    assert json.loads((tmp_path / "report.json").read_text())["figures"].keys() == {"rtx", "parity"}


@WITHOUT_GPU
@pytest.mark.slow
def test_without_a_gpu_the_other_parts_still_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["gpu-check", str(tmp_path), "--device", "cuda", "--quick", "--only", "machine,memory"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures.keys() == {"machine", "memory"}
    assert "the part plans has not built any" in figures["memory"]["failed"]


@pytest.mark.slow
def test_on_a_cpu_plans_are_found_and_compared(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(engines, tmp_path / "engines", symlinks=True)  # the same inputs: found, not built again
    main(["gpu-check", str(tmp_path), "--device", "cpu", "--quick", "--only", "onnx,plans,parity"])
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])["figures"]
    assert figures["plans"]["variant"] == "onnx"
    assert figures["onnx"]["worst"] < LEVELS_TOLERANCE
    assert figures["parity"]["relative_l2"].keys() == set(get_args(GraphName))
    assert "parity: each graph against PyTorch" in (tmp_path / "report.md").read_text()
