"""Fixtures that many tests share: the trained small checkpoint and the plans built from it, once per test run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from fakes.processes import PYTHONPATH
from fakes.services import Certificates, PostgreSql, RabbitMq, Redis, SeaweedS3, new
from rich.console import Console

from nano.layout import Z_IMAGE_NANO

os.environ["PYTHONPATH"] = PYTHONPATH  # for processes that tests start
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a worker per core is parallel enough

# no example has a deadline: a busy machine must not fail a test
hypothesis.settings.register_profile("without_deadline", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("without_deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need plans or a broker as slow, and put files with slow tests first.

    pytest-xdist hands out whole files in this order, so that the last ones, which only one worker runs, are short.
    Plans take a minute to build. The first file builds them, and the files after it need none, so that no other worker
    waits for them.
    """
    for item in items:
        if {"engines", "build_plans", "redis", "rabbitmq"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    needing = list(dict.fromkeys(item.path for item in items if "engines" in getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: (item.path not in slow, item.path not in needing[:1], item.path in needing))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """z-image-nano as it is committed; tests that change it copy it first."""
    return Z_IMAGE_NANO


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run share; scripts/test names one for the passes that it makes."""
    if named := os.environ.get("ZIMAGE_TEST_FILES"):
        return Path(named)
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def traces(run_folder: Path) -> Path:
    """The folder of the graphs that this test run has traced."""
    return run_folder / "traces"


@pytest.fixture(scope="session")
def build_plans(traces: Path) -> Callable[..., Path]:
    """`build_engines`; from here on, this process traces no graph that the test run has traced before."""
    from fakes.shared import share_traces

    from export.build import build_engines

    share_traces(traces)
    return build_engines


@pytest.fixture(scope="session")
def engines(checkpoint: Path, run_folder: Path, build_plans: Callable[..., Path]) -> Path:
    """An output folder of `build-engines --fp32 --flavor onnx`; tests that change it copy it first."""
    from fakes.shared import made_once

    from export.build import BuildOptions
    from export.progress import BuildProgress

    def build(output: Path) -> None:
        options = BuildOptions(str(checkpoint), output, precision="fp32", flavor="onnx")
        build_plans(options, BuildProgress(Console(quiet=True)))

    return made_once(run_folder / "engines", build)


@pytest.fixture(scope="session")
def refittable(checkpoint: Path, run_folder: Path, build_plans: Callable[..., Path]) -> Path:
    """An output folder of `build-engines --flavor onnx --refittable`; tests that change it copy it first."""
    from fakes.shared import made_once

    from export.build import BuildOptions
    from export.progress import BuildProgress

    def build(output: Path) -> None:
        options = BuildOptions(str(checkpoint), output, flavor="onnx", refittable=True)
        build_plans(options, BuildProgress(Console(quiet=True)))

    return made_once(run_folder / "refittable", build)


@pytest.fixture(scope="session")
def plan_directory(engines: Path) -> Path:
    """The plan directory in `engines`."""
    return (engines / "current").resolve()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSql]:
    """A PostgreSQL server that all tests of this process share: make databases, but do not stop it."""
    with new(PostgreSql) as service:
        yield service


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A Redis server that all tests of this process share."""
    with new(Redis) as service:
        yield service


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates | None:
    """Certificates for TLS; None if openssl is not installed."""
    return None if Certificates.missing() else Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def rabbitmq(certificates: Certificates | None) -> Iterator[RabbitMq]:
    """A RabbitMQ server that all tests of this process share; with a port for TLS, since another one takes 4 s."""
    with new(RabbitMq, certificates=certificates) as service:
        yield service


@pytest.fixture(scope="session")
def s3() -> Iterator[SeaweedS3]:
    """An S3 server that all tests of this process share."""
    with new(SeaweedS3) as service:
        yield service


@pytest.fixture
def postgres_url(postgres: PostgreSql) -> str:
    """URL of a new, empty database."""
    return postgres.fresh_url()


@pytest.fixture
def redis_url(redis: Redis) -> str:
    """URL of an empty Redis database."""
    return redis.fresh_url()


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitMq) -> str:
    """URL of a new virtual host."""
    return rabbitmq.fresh_url()


@pytest.fixture
def s3_url(s3: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty image store in S3, with credentials in the environment."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    return s3.fresh_url()
