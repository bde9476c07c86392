"""Images that jobs begin with, in the store: with their job from its acceptance to its deletion."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fakes.databases import Place
from fakes.jobs import image, init_image, job, stored_size

from engine.request import ImageRequest
from server.jobs.storage.retention import Retention
from server.jobs.storage.store import JobStore
from server.worker.packed_image import PackedImage, pack

PACKED = pack(init_image())
# the tables of version 3, which had no init images
VERSION_3 = """
    CREATE TABLE jobs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, request TEXT NOT NULL,
        image_count INTEGER NOT NULL, format TEXT NOT NULL, api TEXT NOT NULL, owner TEXT, durable INTEGER NOT NULL,
        idempotency_key TEXT, fingerprint TEXT NOT NULL, created REAL NOT NULL, deadline REAL, state TEXT NOT NULL,
        started REAL, finished REAL, attempts INTEGER NOT NULL, error TEXT NOT NULL, bytes INTEGER NOT NULL DEFAULT 0,
        CHECK ((finished IS NULL) = (state IN ('queued', 'running')))
    );
    CREATE UNIQUE INDEX jobs_by_key ON jobs (idempotency_key, ifnull(owner, '')) WHERE idempotency_key IS NOT NULL;
    CREATE INDEX jobs_by_owner ON jobs (owner, sequence);
    CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE finished IS NULL;
    CREATE INDEX jobs_ended ON jobs (finished) WHERE finished IS NOT NULL;
    CREATE INDEX jobs_without_result ON jobs (finished, sequence, bytes, state)
        WHERE finished IS NOT NULL AND state <> 'done';
    CREATE INDEX jobs_done ON jobs (owner, finished, sequence, bytes, state) WHERE state = 'done';
    CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, number INTEGER NOT NULL, media_type TEXT NOT NULL,
        metadata TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (job, number)
    );
    PRAGMA user_version = 3;
"""
OLD_JOB = (
    "INSERT INTO jobs (id, request, image_count, format, api, durable, fingerprint, created, state, attempts, error)"
    """ VALUES ('old', '{"prompt": "a cat"}', 1, '{}', 'tasks', 1, 'f', 1.5, 'queued', 0, 'null')"""
)


def rows(store: JobStore) -> int:
    count: int = store.database.rows("SELECT count(*) AS count FROM init_images")[0]["count"]
    return count


def test_init_image_is_read_back_with_its_job_only(place: Place) -> None:
    with closing(place.open()) as store:
        first, other = store.add(job(), PACKED), store.add(job())
        assert store.init_images.get(first.id) == PACKED
        assert store.init_images.get(other.id) is store.init_images.get("unknown") is None
        assert store.init_images.unpacked_bytes() == {first.id: init_image().nbytes}


def test_repeated_key_keeps_the_first_init_image(either_store: JobStore) -> None:
    store = either_store
    first = store.add(job(idempotency_key="key"), PACKED)
    assert store.add(job(idempotency_key="key"), PackedImage(b"other", 5)) == first
    assert store.init_images.get(first.id) == PACKED and rows(store) == 1


def test_init_image_is_deleted_with_its_job(either_store: JobStore) -> None:
    store = either_store
    ids = [store.add(job(), PACKED).id for _ in range(3)]
    for id in ids:
        store.cancel(id)
    store.delete(ids[0])
    assert rows(store) == 2
    store.prune(Retention(max_age=0.0))
    assert rows(store) == 0 and store.init_images.get(ids[1]) is None


def test_bytes_of_init_images_count_against_the_history(either_store: JobStore) -> None:
    store = either_store
    wanted = job()
    assert store.bytes_since_prune == 0
    store.add(wanted, PACKED)
    assert store.bytes_since_prune == len(PACKED.data)
    store.cancel(wanted.id)
    assert store.database.rows("SELECT bytes FROM jobs")[0]["bytes"] == stored_size(wanted) + len(PACKED.data)


def test_prune_deletes_jobs_whose_init_images_are_too_many_bytes(either_store: JobStore) -> None:
    store = either_store
    ids = []
    for _ in range(3):
        id = store.add(job(), PACKED).id
        store.start(id)
        store.add_image(id, image())
        store.finish(id)
        ids.append(id)
    while store.prune(Retention(max_bytes=2.5 * len(PACKED.data))):
        pass
    assert [id for id in ids if store.get(id)] == ids[1:]


def test_history_does_not_read_init_images(store: JobStore) -> None:
    store.add(job(), PACKED)
    statements: list[str] = []
    store.database.connection.set_trace_callback(statements.append)
    assert store.history(10).jobs
    assert statements and not any("init_images" in sql for sql in statements)


def test_database_of_the_version_before_is_carried_over(path: Path) -> None:
    with closing(sqlite3.connect(path)) as old:
        old.executescript(VERSION_3)
        old.execute(OLD_JOB)
        old.commit()
    with closing(JobStore(path)) as store:
        assert store.get("old").request == ImageRequest("a cat")
        new = store.add(job(), PACKED)
    with closing(JobStore(path)) as store:
        assert [each.id for each in store.recover()] == ["old", new.id]
        assert store.init_images.get(new.id) == PACKED
        columns = ("name", "tbl_name", "type")
        tables = [tuple(row) for row in store.database.rows(f"SELECT {', '.join(columns)} FROM sqlite_master")]
    with closing(JobStore(path.with_name("new"))) as fresh:
        assert sorted(tables) == sorted(
            tuple(row) for row in fresh.database.rows(f"SELECT {', '.join(columns)} FROM sqlite_master")
        )


@pytest.mark.parametrize("value", ["'text'", "5", "x''"])
@pytest.mark.parametrize("column", ["data", "unpacked_bytes"])
def test_damaged_row_is_no_init_image(store: JobStore, column: str, value: str) -> None:
    id = store.add(job(), PACKED).id
    store.database.connection.execute(f"UPDATE init_images SET {column} = {value}")
    found = store.init_images.get(id)
    assert found is None or (isinstance(found.data, bytes) and isinstance(found.unpacked_bytes, int))
    assert all(isinstance(size, int) for size in store.init_images.unpacked_bytes().values())
