"""Properties of all commands: versions, help and interruptions, and what they import before they are sure."""

import importlib
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import server.cli
from engine.command_line import one_line_errors
from engine.errors import PlanNotFound
from server import __main__ as serve

COMMANDS = {
    "build-engines": "export.cli",
    "zimage-lora": "export.lora_cli",
    "zimage-generate": "engine.cli",
    "zimage-serve": "server.cli",
    "zimage-admin": "server.fleet.admin",
    "zimage-bench": "benchmarks.cli",
}
SLOW = ("torch", "transformers", "diffsynth", "onnx", "onnxruntime", "tensorrt_rtx")

PROGRAM = """
import importlib, sys
module, slow, *arguments = sys.argv[1:]
try:
    importlib.import_module(module).main(arguments)
except SystemExit as end:
    status = end.code
print([name for name in slow.split(",") if name in sys.modules], status)
"""


def run(command: str, *arguments: str, slow: tuple[str, ...] = SLOW) -> str:
    """Run a command in a process, and return its last line: the slow modules that it imported, and its exit status."""
    program = [sys.executable, "-c", PROGRAM, COMMANDS[command], ",".join(slow), *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120).stdout.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_version_is_printed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(COMMANDS[command]).main(["--version"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out == f"{command} {version('zimage-trt')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command: str) -> None:
    light = () if command == "zimage-serve" else ("numpy",)
    assert run(command, "--help", slow=SLOW + light) == "[] 0"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS[command]).main(["--help"])
    said = capsys.readouterr().out.lower()
    assert f"  {command} " in said.split("example")[-1] or f"example: {command} " in said


@pytest.mark.parametrize("command", ["build-engines", "zimage-generate", "zimage-serve"])
def test_help_has_groups(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS[command]).main(["--help"])
    titles = re.findall(r"^(\w[\w ,]*):$", capsys.readouterr().out, re.MULTILINE)
    assert len(set(titles) - {"options", "examples"}) >= 3 and "positional arguments" not in titles


@pytest.mark.parametrize(
    "arguments",
    [
        ("--colour", "red"),
        ("--bf16", "--flavor", "onnx"),
        ("--bf16", "--accumulate", "fp16", "--flavor", "rtx"),
        ("--flavor", "onnx", "--compute-capability", "8.9"),
        ("--flavor", "onnx", "--profile", "big"),
    ],
    ids=" ".join,
)
def test_build_refuses_wrong_options_before_it_imports_pytorch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    said = run("build-engines", "--model", "nano/z-image-nano", "--output", str(tmp_path / "out"), *arguments)
    assert said.startswith("[] ") and said != "[] 0"
    assert not (tmp_path / "out").exists()


def test_generate_refuses_wrong_arguments_before_it_imports_numpy(engines: Path, tmp_path: Path) -> None:
    arguments = ("a cat", "--engines", str(engines), "-o", str(tmp_path / "a.png"), "--size", "65x64")
    assert run("zimage-generate", *arguments, slow=("numpy", *SLOW)).startswith(
        "[] zimage-generate: width must be a multiple of 16"
    )


def test_error_and_interruption_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors("zimage-x"):
        raise PlanNotFound("no plan directory at out")
    assert end.value.code == "zimage-x: no plan directory at out"
    for interruption, line in (((), "interrupted"), (("3 of 5 written",), "interrupted; 3 of 5 written")):
        with pytest.raises(SystemExit) as end, one_line_errors("zimage-x"):
            raise KeyboardInterrupt(*interruption)
        assert end.value.code == 130
        assert capsys.readouterr() == ("", f"zimage-x: {line}\n")


def test_serve_that_is_interrupted_before_it_listens_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.cli, "main", interrupted)
    with pytest.raises(SystemExit) as end:
        serve.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "zimage-serve: interrupted\n"
