"""The API tests run with every way of getting images: workers of the server, and fleets over each broker."""

import gc
import os
import warnings
from collections.abc import Iterator

import pytest
from fakes.jobs_mode import MODES, FleetServices
from fakes.services import PostgreSql

SERVERS = {"base_url", "http", "client", "url"}  # fixtures that start servers
WITHOUT_JOBS = {  # modules about what is answered before there is a job
    "test_body",
    "test_dialects",
    "test_documentation",
    "test_held_bytes",
    "test_model_info",
    "test_multipart",
    "test_openapi",
    "test_query",
}
# Modules that always run over a broker too; the others take minutes, and differ in bodies more than in jobs
OVER_RABBITMQ = {"test_event_ids", "test_images", "test_tasks_api"}
OVER_REDIS = OVER_RABBITMQ | {"test_access", "test_clients", "test_edits", "test_errors"}

# Hosts in one process share Celery's module variables: one that stops has the Celery worker of the next one begin anew,
# and amqp may leave the socket of a lost connection to the garbage collector.
LEAKING = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat tests of jobs for each mode; ZIMAGE_TEST_JOBS="embedded redis rabbitmq" does so for all modules."""
    if hasattr(metafunc.module, "serving") or SERVERS & set(metafunc.fixturenames):
        modes = _modes(metafunc.module.__name__.rpartition(".")[2])
        marks = {"embedded": (), "redis": pytest.mark.slow, "rabbitmq": (pytest.mark.slow, LEAKING)}
        found = [pytest.param(mode, marks=marks[mode]) for mode in modes]
        metafunc.parametrize("jobs_mode", found, indirect=True, scope="module")


def _modes(module: str) -> list[str]:
    if module in WITHOUT_JOBS:
        return ["embedded"]
    if (given := os.environ.get("ZIMAGE_TEST_JOBS")) is not None:
        return given.split()
    over_brokers = {"redis": OVER_REDIS, "rabbitmq": OVER_RABBITMQ}
    return [mode for mode in MODES if module in over_brokers.get(mode, {module})]


@pytest.fixture(scope="module", autouse=True)
def jobs_mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have `fakes.server.serving` start servers of one mode."""
    mode: str = getattr(request, "param", "embedded")
    if mode == "embedded":
        yield mode
        return
    from server.fleet import janitor
    from server.fleet.host import heartbeats  # not at the top: embedded tests need no Celery

    postgres: PostgreSql = request.getfixturevalue("postgres")
    FleetServices.current = FleetServices(request.getfixturevalue(mode).url, postgres.fresh_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeats, "HEARTBEAT_SECONDS", 0.2)
        patch.setattr(janitor, "EVERY", 0.2)
        yield mode
    FleetServices.current = None
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # see LEAKING
        gc.collect()
