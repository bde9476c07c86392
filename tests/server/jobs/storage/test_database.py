"""The database's files: who may read them."""

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.jobs import generated

from server.jobs.storage.store import JobStore
from server.serving import _lock


@pytest.fixture
def lax_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("lax_umask")
def test_new_database_log_and_lock_are_readable_by_their_owner_only(path: Path) -> None:
    with _lock(path), closing(JobStore(path)) as store:
        generated(store)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "jobs.sqlite.lock"], 0o600)


@pytest.mark.usefixtures("lax_umask")
def test_database_behind_a_dangling_link_is_readable_by_its_owner_only(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    JobStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, True), (0o600, False)])
def test_existing_database_keeps_its_mode_and_is_warned_about_if_others_can_read_it(
    path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    JobStore(path).close()
    path.chmod(mode)
    JobStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has mode {mode:o}: other users can read the prompts and images in it; chmod 600 it"
    ] * warned
