"""Requests while the job store is locked or its disk is full."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.faults import STEP, ask, colour
from fakes.loop import FakeLoop
from fakes.server import serving

from server.jobs.storage.store import JobStore


def test_locked_database_refuses_new_jobs_and_finishes_accepted_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "jobs.db"
    fake = FakeLoop(seconds_per_step=STEP)
    with serving(fake, database=database) as url, ThreadPoolExecutor() as pool:
        accepted = pool.submit(ask, url, "a cat", **{"Idempotency-Key": "mine"})
        assert fake.pending.wait(5)
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        refused = ask(url, "a dog")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert int(refused.headers["retry-after"]) > 0
        (logged,) = [record.getMessage() for record in caplog.records if record.name == "server.api.errors"]
        assert "jobs.db: database is locked" in logged and "jobs.db" not in refused.text
        assert colour(accepted.result()) == [1, 8, 5]
        assert httpx.get(url + "/health").status_code == 200
        other.execute("ROLLBACK")
        other.close()
        assert colour(ask(url, "a dog")) == [1, 8, 5]
    store = JobStore(database)
    assert [job.state for job in store.history(10, None, None).jobs] == ["done", "done"]
    store.close()


def test_full_disk_refuses_new_jobs_and_finishes_accepted_ones(tmp_path: Path) -> None:
    fake = FakeLoop(seconds_per_step=STEP)
    with serving(fake, database=tmp_path / "jobs.db") as url, ThreadPoolExecutor() as pool:
        accepted = pool.submit(ask, url, "a cat", **{"Idempotency-Key": "mine"})
        assert fake.pending.wait(5)
        with full_disk(fake):
            assert colour(accepted.result()) == [1, 8, 5]  # from memory
            refused = ask(url, "a dog " * 5000)
            assert refused.json()["error"]["code"] == "store_unavailable"
        assert colour(ask(url, "a dog")) == [1, 8, 5]
        assert colour(ask(url, "a cat", **{"Idempotency-Key": "mine"})) == [1, 8, 5]  # from the disk


@contextmanager
def full_disk(fake: FakeLoop) -> Iterator[None]:
    """Let SQLite add no page."""
    connection = fake.store.database.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count = 1000000")
