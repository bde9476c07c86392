"""deploy/systemd, read by systemd-analyze."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes.deployment import DEPLOY

FOLDER = DEPLOY / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    units = []
    for unit in FOLDER.glob("*.service"):
        text = unit.read_text()
        (program,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
        (tmp_path / unit.name.replace("@", "@all")).write_text(text.replace(program, "/bin/true"))
        units.append(unit.name.replace("@", "@all"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(f"./{unit}" for unit in units)], cwd=tmp_path, capture_output=True
    )
    said = done.stderr.decode()
    assert len(units) == 2 and not [line for line in said.splitlines() if str(tmp_path) in line or "zimage" in line], (
        said
    )
    assert done.returncode == 0


def test_environment_files_that_units_name_are_here() -> None:
    for unit in FOLDER.glob("*.service"):
        for path in re.findall(r"^EnvironmentFile=-?(\S+)", unit.read_text(), re.MULTILINE):
            assert Path(path).parent == Path("/etc/zimage")
            assert (FOLDER / Path(path).name).is_file() or "%i" in path
