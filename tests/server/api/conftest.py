"""The API tests run with every way of getting images: workers of the server, and fleets over each broker."""

import os
from collections.abc import Iterator

import pytest
from fakes.jobs_mode import MODES, FleetServices
from fakes.services import PostgreSql

SERVERS = {"base_url", "http", "client", "url"}  # fixtures that start servers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat tests of servers for each mode; ZIMAGE_TEST_JOBS names the modes, separated by spaces."""
    if hasattr(metafunc.module, "serving") or SERVERS & set(metafunc.fixturenames):
        modes = os.environ.get("ZIMAGE_TEST_JOBS", " ".join(MODES)).split()
        metafunc.parametrize("jobs_mode", modes, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def jobs_mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have `fakes.server.serving` start servers of one mode."""
    mode: str = getattr(request, "param", "embedded")
    if mode == "embedded":
        yield mode
        return
    postgres: PostgreSql = request.getfixturevalue("postgres")
    FleetServices.current = FleetServices(request.getfixturevalue(mode).url, postgres.fresh_url)
    yield mode
    FleetServices.current = None
