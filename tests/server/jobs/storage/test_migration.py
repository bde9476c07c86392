"""Databases of the version before are carried over with all that is in them.

version_4.sql is what zimage-trt of schema 4 wrote: `iterdump` of a store with a job in each state.
"""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.jobs import ERROR, METADATA, host, job

from engine.init_image import InitImage
from engine.request import ImageRequest
from engine.size import Size
from server.jobs.job import StoredImage
from server.jobs.storage.databases.schema import VERSION
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.retention import Retention
from server.jobs.storage.store import JobStore
from server.worker.packed_image import pack

VERSION_4 = Path(__file__).with_name("version_4.sql")
BLACK = InitImage(Size(64, 64), bytes(3 * 64 * 64), None)


@pytest.fixture
def old(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_4.read_text())
    return path


def test_jobs_and_images_of_version_4_are_what_they_were(old: Path) -> None:
    with closing(JobStore(old)) as store:
        done = store.get("done")
        same = {"id": "done", "created": 1000.0, "owner": "alice", "idempotency_key": "key"}
        assert done == replace(job(2, **same), state="done", started=1001.0, finished=1002.0, attempts=1, sequence=1)
        assert store.images("done") == [
            StoredImage(0, "image/png", b"first", METADATA),
            StoredImage(1, "image/png", b"second", METADATA),
        ]
        assert (store.get("failed").error, store.get("cancelled").state) == (ERROR, "cancelled")
        assert [found.id for found in store.history(9, owner="bob").jobs] == ["queued"]


def test_unfinished_jobs_of_version_4_are_resumed(old: Path) -> None:
    with closing(JobStore(old)) as store:
        running, queued = store.recover()
        assert (running.id, running.state, running.attempts, running.deadline) == ("running", "queued", 1, 9000.5)
        assert running.request == ImageRequest("a red circle", lora="ink").starting_from(BLACK)
        assert store.init_images.get("running") == pack(BLACK)
        assert (queued.id, queued.owner, queued.client, queued.priority) == ("queued", "bob", "", "interactive")
        assert store.start("running") and store.cancel("running") and store.cancel("queued")


def test_keys_of_version_4_are_still_taken(old: Path) -> None:
    with closing(JobStore(old)) as store:
        assert store.add(job(owner="alice", idempotency_key="key")).id == "done"
        assert store.add(job(idempotency_key="key")).sequence > 5


def test_tables_of_version_4_become_those_of_a_new_database(old: Path) -> None:
    JobStore(old).close()
    JobStore(old.with_name("new")).close()
    found = []
    for path in (old, old.with_name("new")):
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master ORDER BY name")]
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {
                # name, type, NOT NULL, default, part of the primary key
                table: sorted(row[1:] for row in database.execute(f"PRAGMA table_info({table})"))
                for table in tables
            }
            found.append((names, columns))
    assert found[0] == found[1]


VERSION_5 = (  # of PostgreSQL: what it did not have
    "ALTER TABLE shares DROP COLUMN charged_at",
    "ALTER TABLE init_images ALTER CONSTRAINT init_images_job_fkey NOT DEFERRABLE",
    "UPDATE schema_version SET version = 5, readable_from = 5",
)


def test_fleet_of_version_5_goes_on(postgres_url: str) -> None:
    with closing(FleetStore(postgres_url)) as store:
        store.register(host("host"))
        before = store.add(job(model="nano"))
        store.claim(host("host"), (), 1, lambda _: Size(64, 64))
        for statement in VERSION_5:
            store.database.execute(statement)
    with closing(FleetStore(postgres_url)) as store:
        after = store.add(job(model="nano"), pack(BLACK))
        assert [found.id for found in store.unfinished()] == [before.id, after.id]
        assert [claimed.job.id for claimed in store.claim(host("host"), (), 1, lambda _: Size(64, 64))] == [after.id]
        assert store.prune(Retention()) == 0
        assert store.init_images.get(after.id) == pack(BLACK)
