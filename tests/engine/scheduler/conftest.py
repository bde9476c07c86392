from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.host_engine import write_plans
from fakes.loop_builder import DEVICES, SLOTS, LoopBuilder, loop_builder

from engine.options import RuntimeOptions
from engine.pipeline import Pipeline


@pytest.fixture(scope="session")
def fake_plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and plan files that no engine reads."""
    return write_plans(tmp_path_factory.mktemp("plans"))


@pytest.fixture(params=DEVICES)
def fakes(request: pytest.FixtureRequest, fake_plans: Path) -> Iterator[LoopBuilder]:
    """A pipeline of fakes, on the host and on a device that runs late or early."""
    builder = loop_builder(fake_plans, request.param)
    yield builder
    builder.pipeline.close()


@pytest.fixture(scope="module")
def nano(plan_directory: Path) -> Iterator[Pipeline]:
    """z-image-nano in FP32."""
    with Pipeline.load(plan_directory, RuntimeOptions(slots=SLOTS)) as pipeline:
        yield pipeline
