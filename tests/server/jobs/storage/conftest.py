"""Job stores in both databases, and a folder for an archive."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.databases import ClockedPostgres, Place, empty
from fakes.jobs import Clock
from fakes.services import PostgreSql

from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.store import JobStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    """A store in SQLite."""
    with closing(JobStore(path)) as opened:
        yield opened


@pytest.fixture(scope="session")
def reused_url(postgres: PostgreSql) -> str:
    """URL of a database with the tables of a store."""
    url = postgres.fresh_url()
    JobStore(url).close()
    return url


@pytest.fixture
def store_url(reused_url: str) -> str:
    """URL of an empty store in PostgreSQL."""
    empty(reused_url)
    return reused_url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, path: Path) -> Place:
    """An empty store of each kind."""
    return Place(path if request.param == "sqlite" else request.getfixturevalue("store_url"))


@pytest.fixture
def either_store(place: Place) -> Iterator[JobStore]:
    """A store of each kind."""
    with closing(place.open()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(store_url: str, clock: Clock) -> Iterator[FleetStore]:
    """An empty store of a fleet, which goes by `clock`."""
    with closing(FleetStore(ClockedPostgres(store_url, clock))) as opened:
        yield opened
