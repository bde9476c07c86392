"""Repeated builds are found by their inputs, without PyTorch; anything that changed is built again.

The builds here are a few bytes long.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.manifest import MANIFEST as SAMPLE

from engine.plan.directory import MANIFEST_FILE, encode, resolve
from engine.plan.manifest import Graph
from export import cli, known_builds, plan_directory


class Builds:
    """Runs of build-engines on a checkpoint of two files, whose builds are counted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output, self.model = folder / "engines", folder / "model"
        (self.model / "vae").mkdir(parents=True)
        (self.model / "vae" / "config.json").write_text("{}")
        self.lora = folder / "lora.safetensors"
        self.lora.write_text("lora")
        self.count = 0
        monkeypatch.setattr(cli, "_build", self._build)

    def _build(self, args: argparse.Namespace, _: object) -> Path:
        self.count += 1
        finished = Path(args.output) / f"plans-{self.count}"
        finished.mkdir(parents=True)
        (finished / "graph.onnx").write_text("graph")
        files = plan_directory.list_files(finished)
        graph = Graph("graph.onnx", "fp32", (), ())
        manifest = replace(SAMPLE, graphs=dict.fromkeys(SAMPLE.graphs, graph), files=files)
        (finished / MANIFEST_FILE).write_bytes(encode(manifest))
        plan_directory.make_current(finished)
        return finished

    def run(self, *arguments: str, verify: bool = False) -> Path:
        """Run the command and return the plans that `current` then names."""
        always = ["--model", str(self.model), "--output", str(self.output), *([] if verify else ["--no-verify"])]
        cli.main([*always, *(arguments or ("--flavor", "onnx"))])
        return resolve(self.output)


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    return Builds(tmp_path, monkeypatch)


def test_same_inputs_are_found_and_made_current(builds: Builds, capsys: pytest.CaptureFixture[str]) -> None:
    first = builds.run()
    assert builds.run("--flavor", "onnx", "--fp32") != first
    assert builds.run() == first
    assert builds.count == 2
    said = capsys.readouterr()
    assert "which was built from the same inputs" in " ".join(said.err.split())
    assert said.out.splitlines()[-1] == str(builds.output / "plans-1")


def touch(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Builds], object]] = {
    "time": lambda builds: touch(builds.model / "vae" / "config.json"),
    "new file": lambda builds: (builds.model / "vae" / "new.safetensors").write_text(""),
    "lost file": lambda builds: (builds.model / "vae" / "config.json").unlink(),
    "lora": lambda builds: touch(builds.lora),
    "new config of the lora": lambda builds: builds.lora.with_name("adapter_config.json").write_text("{}"),
    "damaged plans": lambda builds: (builds.output / "plans-1" / "graph.onnx").write_text("other"),
    "lost plans": lambda builds: (builds.output / "plans-1").rename(builds.output / "elsewhere"),
    "damaged record": lambda builds: next(builds.output.glob(".*.inputs")).write_text("plans-1/../plans-1"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changed_is_built_again(builds: Builds, change: Callable[[Builds], object]) -> None:
    arguments = ("--flavor", "onnx", "--lora", f"{builds.lora}:0.5")
    builds.run(*arguments)
    builds.run(*arguments)
    assert builds.count == 1
    change(builds)
    builds.run(*arguments)
    assert builds.count == 2


def test_other_options_and_versions_are_built_again(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.run("--flavor", "onnx", "--lora", f"{builds.lora}:0.5")
    builds.run("--flavor", "onnx", "--lora", f"{builds.lora}:0.6")
    builds.run("--flavor", "onnx", "--profile", "128")
    builds.run("--flavor", "onnx", "--refittable")
    builds.run("--flavor", "rtx")
    assert builds.count == 5
    monkeypatch.setattr(known_builds, "version", lambda _: "99")
    builds.run("--flavor", "rtx")
    monkeypatch.setattr(plan_directory, "version", lambda _: "99")
    builds.run("--flavor", "rtx")
    assert builds.count == 7


def test_flavors_that_depend_on_the_machine_are_not_recorded(builds: Builds) -> None:
    builds.run("--flavor", "auto")
    builds.run("--flavor", "auto")
    assert builds.count == 2


def test_plans_that_were_not_compared_are_not_found_for_a_build_that_compares(builds: Builds) -> None:
    builds.run()
    builds.run(verify=True)
    assert builds.count == 2


@pytest.mark.parametrize("lora", ["missing.safetensors", "missing.safetensors:0.5", ":0.5"])
def test_missing_lora_is_left_to_the_build_to_refuse(builds: Builds, lora: str) -> None:
    builds.run("--flavor", "onnx", "--lora", lora)
    builds.run("--flavor", "onnx", "--lora", lora)
    assert builds.count == 2
