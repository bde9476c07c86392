"""scripts/install, with fakes of Python and apt-get that record what they are asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "chmod", "cp", "dirname", "env", "id", "mkdir", "rm", "sh", "sha256sum", "uname")

PYTHON = """#!/bin/bash
[ "$1" = - ] && exit 0
[ "$2" = venv ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python
echo "python $*" >> log
"""
APT_GET = """#!/bin/bash
echo "apt-get $*" >> log
[ "$1" = update ] || "$POLICY_RC_D" || echo "daemons: $?" >> log
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with scripts/install, and a folder of the few commands that it finds."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "scripts" / "install", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    for name, text in (("python3", PYTHON), ("apt-get", APT_GET)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    return tmp_path


def install(checkout: Path, *arguments: str) -> list[str]:
    """Run scripts/install and return what it ran."""
    log = checkout / "log"
    log.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    subprocess.run(
        [checkout / "scripts" / "install", *arguments],
        env=environment | {"PATH": str(checkout / "bin"), "POLICY_RC_D": str(checkout / "policy-rc.d")},
        check=True,
        stdout=subprocess.PIPE,
    )
    return log.read_text().splitlines() if log.exists() else []


def extras(ran: list[str]) -> set[str]:
    (line,) = [line for line in ran if "--editable" in line]
    return set(line.split("--editable .[")[1].rstrip("]").split(","))


def test_demo_installs_no_tools_and_no_system_packages(checkout: Path) -> None:
    ran = install(checkout, "demo")
    assert extras(ran) == {"cpu", "export"}
    assert not [line for line in ran if line.startswith("apt-get")]
    assert "--no-compile" in ran[-2] and "compileall" in ran[-1] and "-j 0" in ran[-1], "on all cores"
    assert install(checkout, "demo") == []


def test_test_upgrades_a_demo_and_includes_it(checkout: Path) -> None:
    install(checkout, "demo")
    ran = install(checkout, "test")
    assert {"cpu", "export", "nano", "bench", "test", "check"} <= extras(ran)
    if os.getuid() == 0:
        assert [line for line in ran if line.startswith("apt-get") and "chromium" in line]
    assert install(checkout, "test") == install(checkout, "demo") == install(checkout) == []
    (checkout / "constraints.txt").write_text("changed")
    assert install(checkout, "demo") and install(checkout)


def test_unknown_kind_is_refused(checkout: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as end:
        install(checkout, "all")
    assert end.value.returncode == 2 and not (checkout / "log").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_packages_are_installed_without_their_daemons_and_without_python(checkout: Path) -> None:
    ran = install(checkout, "packages")
    assert [line for line in ran if "install" in line and "--no-install-recommends" in line and "chromium" in line]
    assert "daemons: 101" in ran  # what policy-rc.d answers: start nothing
    assert not (checkout / "policy-rc.d").exists()
    assert not [line for line in ran if line.startswith("python")]
    (checkout / "policy-rc.d").write_text("#!/bin/sh\nexit 102\n")
    (checkout / "policy-rc.d").chmod(0o755)
    assert "daemons: 102" in install(checkout, "packages")  # the machine's own
    assert (checkout / "policy-rc.d").exists()
