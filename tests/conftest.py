"""What many tests share: the trained small checkpoint, and its FP32 ONNX plans, made once per run."""

import os
from pathlib import Path

import pytest
from fakes.processes import PYTHONPATH
from rich.console import Console

from nano.layout import Z_IMAGE_NANO

os.environ["PYTHONPATH"] = PYTHONPATH  # for processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Plans of the trained model take a minute to make, whoever needs them first."""
    for item in items:
        if "engines" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """z-image-nano as it is committed; tests that change it copy it first."""
    return Z_IMAGE_NANO


@pytest.fixture(scope="session")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `build-engines --fp32 --flavor onnx --output` leaves; tests that change it copy it first."""
    from export.build import BuildOptions, build_engines
    from export.progress import BuildProgress

    output = tmp_path_factory.mktemp("engines")
    options = BuildOptions(str(checkpoint), output, precision="fp32", flavor="onnx", verify="always")
    build_engines(options, BuildProgress(Console(quiet=True)))
    return output


@pytest.fixture(scope="session")
def plan_directory(engines: Path) -> Path:
    """The plan directory itself."""
    return (engines / "current").resolve()
