"""Processes that are started in a directory with modules of well-known names."""

import subprocess
import sys
from pathlib import Path

import pytest
from fakes.processes import PYTHONPATH

from engine.module_command import ROOT, module_command

NAMES = ("engine", "server", "benchmarks", "random", "json", "runpy", "asyncio", "numpy")


@pytest.fixture(params=["{}.py", "{}/__init__.py"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose modules must not be imported."""
    for name in NAMES:
        file = tmp_path / request.param.format(name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"raise SystemExit('imported {name} of the current directory')")
    return tmp_path


@pytest.mark.parametrize("module", ["server.worker.process", "benchmarks.cli"])
def test_modules_in_the_current_directory_are_not_imported(folder: Path, module: str) -> None:
    done = subprocess.run(module_command(module), cwd=folder, env={}, capture_output=True, text=True, check=False)
    assert "of the current directory" not in done.stderr
    if module == "server.worker.process":  # as far as its missing arguments
        assert done.stderr.endswith("IndexError: list index out of range\n")
        assert str(ROOT / "server" / "worker" / "process.py") in done.stderr
    else:
        assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_arguments_and_name_are_those_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import sys; print(__name__, sys.argv[1:], sys.path.count(sys.argv[-1]))")
    command = module_command("shown", "-a", "b c", str(ROOT))
    for path, count in ((str(tmp_path), 1), (f"{tmp_path}:{PYTHONPATH}", 1)):
        done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
        assert done.stdout == f"__main__ ['-a', 'b c', '{ROOT}'] {count}\n", done.stderr


def test_servers_of_benchmarks_start_in_any_directory(folder: Path) -> None:
    command = module_command("server.cli", "--engines", "missing", "--port", "0")
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith("zimage-serve: no plan directory at missing")) == (1, True)
    assert sys.executable == command[0]
