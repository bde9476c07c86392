"""A job store on a file, and a folder for an archive."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from server.jobs.storage.store import JobStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    with closing(JobStore(path)) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"
