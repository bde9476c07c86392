"""deploy/images: what the Dockerfiles copy, install and start. `scripts/images` builds them."""

import re
import tomllib
from pathlib import Path

import pytest
from fakes.deployment import DEPLOY, ENTRYPOINTS
from fakes.processes import ROOT

FILES = sorted((DEPLOY / "images").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = re.compile(r"torch|tensorrt|cuda|onnx|nvidia")
BACKENDS = ("tensorrt", "tensorrt-rtx", "cpu")

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@every_file
def test_files_that_are_copied_exist(file: Path) -> None:
    for line in re.findall(r"^COPY (.+)$", file.read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert source == "." or list(ROOT.glob(source)), source


@every_file
def test_extras_that_are_installed_exist(file: Path) -> None:
    for extras in re.findall(r'"\.\[([^\]]+)\]"', file.read_text()):
        for extra in extras.split(","):
            assert set(BACKENDS if extra == "${BACKEND}" else [extra]) <= PROJECT["optional-dependencies"].keys()


def test_api_installs_neither_pytorch_nor_a_backend() -> None:
    (extras,) = re.findall(r'"\.\[([^\]]+)\]"', (DEPLOY / "images" / "api.Dockerfile").read_text())
    packages = [*PROJECT["dependencies"]]
    for extra in extras.split(","):
        packages += PROJECT["optional-dependencies"][extra]
    assert not [name for name in packages if HEAVY.search(name)]
    assert {"celery", "psycopg"} <= {re.split(r"[\[>=<]", name)[0] for name in packages}


@every_file
def test_images_run_commands_of_the_project_as_nobody(file: Path) -> None:
    text = file.read_text()
    for program in re.findall(r'^ENTRYPOINT \["([^"]+)"\]$', text, re.MULTILINE):
        assert program in PROJECT["scripts"]
        assert program == ENTRYPOINTS.get(f"zimage-{file.stem}", program)
    assert "USER 10001:10001" in text or file.stem == "builder"  # which writes to a folder of its user


@every_file
def test_files_name_no_package_index(file: Path) -> None:
    assert not re.search(r"https?://|index-url|PIP_", file.read_text())
