"""`zimage-bench self-test`: a table and one line of JSON, also for plans that fail."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.faulty_graphs import GRAPH_FAULTS, plant

from benchmarks.cli import main
from benchmarks.harness.probe_report import figures_of
from engine.plan.directory import MANIFEST_FILE, encode, read
from engine.plan.manifest import File
from engine.plan.probes import Distance
from engine.self_test import Result
from export.plan_directory import list_files

FAULT = GRAPH_FAULTS["one head of one layer"]


def test_intact_plans_pass_on_the_cpu(engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["self-test", "--engines", str(engines), "--threads", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)["figures"]
    assert figures["faults"] == 0 and figures["device"] == "CPU" and figures["seconds"] > 0
    assert set(figures["graphs"]) == {"prompt_encoder", "denoiser", "guidance", "vae_decoder", "vae_encoder", "blend"}
    errors = {name: graph["relative_l2"] for name, graph in figures["graphs"].items()}
    assert all(0 < error < 1e-4 for name, error in errors.items() if name != "blend") and errors["blend"] == 0
    assert all(graph["share_of_limit"] < 0.1 for graph in figures["graphs"].values())
    assert table[0].split()[0] == "graph" and "30 of 30 outputs are right" in table[-1]
    print(f"self-test of z-image-nano: {figures['seconds']:.2f} s")


def altered(plan_directory: Path, folder: Path) -> Path:
    """Plans that compute something else, with a manifest that knows their files."""
    directory = shutil.copytree(plan_directory, folder / "plans")
    plant(FAULT, plan_directory, directory)
    files: tuple[File, ...] = list_files(directory)
    (directory / MANIFEST_FILE).write_bytes(encode(replace(read(plan_directory), files=files)))
    return directory


def test_wrong_plans_end_with_their_fault_after_the_figures(
    plan_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="zimage-bench: this device computes the denoiser wrongly: relative L2"):
        main(["self-test", "--engines", str(altered(plan_directory, tmp_path)), "--threads", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)["figures"]
    assert figures["faults"] == 6 and figures["graphs"]["denoiser"]["share_of_limit"] > 1
    assert sum("at most" in line for line in table) == 6


def test_plans_without_probes_are_refused(plan_directory: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(plan_directory, tmp_path / "plans")
    manifest = read(directory)
    graphs = {name: replace(graph, probes=()) for name, graph in manifest.graphs.items()}
    (directory / MANIFEST_FILE).write_bytes(encode(replace(manifest, graphs=graphs)))
    with pytest.raises(SystemExit, match="has no probes, since it was built with --no-verify"):
        main(["self-test", "--engines", str(directory)])


def test_figures_that_are_not_finite_become_none() -> None:
    limit = Distance(1e-3, 1e-2, 1e-3)
    results = [
        Result("denoiser", "smallest", "latents_next", Distance(whole, 1e-6, 1.0), limit, None)
        for whole in (1e-6, float("nan"))
    ]
    assert figures_of(results) == {
        "graphs": {"denoiser": dict.fromkeys(("relative_l2", "worst_row", "share_of_limit"))}
    }
