"""`zimage-bench`: its list of commands, and a library that is missing."""

import sys
from importlib.util import find_spec

import pytest

from benchmarks.cli import COMMANDS, main


def test_every_command_has_a_module() -> None:
    assert all(find_spec(f"benchmarks.{command.replace('-', '_')}") for command in COMMANDS)


def test_missing_library_is_named_with_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.encode", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SystemExit, match=r"^zimage-bench: PIL is not installed; .* pip install -e '\.\[export,bench"):
        main(["encode"])
