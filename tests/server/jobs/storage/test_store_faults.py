"""The job store when the process is killed, the file is locked or damaged, or the disk refuses."""

import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fakes.jobs import MB, generated, image, job

from engine.request import ImageRequest
from server.errors import StoreUnavailable
from server.jobs.storage.databases.schema import VERSION
from server.jobs.storage.store import JobStore

WAIT = 0.2  # seconds that a store waits for a lock


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    with closing(JobStore(path, WAIT)) as opened:
        yield opened


ADDING = """
import os, sys, time
from pathlib import Path
from engine.request import ImageRequest
from engine.images.metadata import ImageMetadata
from engine.stages import StageTimes
from server.jobs.job import Job, ImageFormat, StoredImage, new_id
from server.jobs.storage.store import JobStore
metadata = ImageMetadata(7, 8, 8, 8, 8, 0.0, "", "fp32", "onnx", "", None, 1, StageTimes())
store = JobStore(Path(sys.argv[1]))
while True:
    job = Job(id=new_id(), request=ImageRequest("x"), image_count=1, format=ImageFormat(), api="images", durable=True,
              fingerprint="", created=time.time())
    os.write(1, f"{store.add(job).id} accepted\\n".encode())
    store.add_image(job.id, StoredImage(0, "image/png", bytes(100_000), metadata))
    os.write(1, f"{job.id} generated\\n".encode())
"""


def test_accepted_jobs_survive_kill_9(path: Path) -> None:
    promised = []
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", ADDING, str(path)], stdout=subprocess.PIPE, text=True) as child:
            promised.append(child.stdout.readline())
            time.sleep(random.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
            promised += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
    with closing(JobStore(path)) as store:
        assert store.database.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        found = {j.id for j in store.recover()}
        for line in promised:
            id, what = line.split()
            assert id in found
            assert what == "accepted" or len(store.image(id, 0).data) == 100_000
        assert len(found) - sum("accepted" in line for line in promised) <= 5  # added, but killed before the print


def test_locked_database_raises_store_unavailable_after_the_timeout(store: JobStore, path: Path) -> None:
    id = store.add(job()).id
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for write in (store.recover, lambda: store.add(job()), lambda: store.start(id), lambda: JobStore(path, WAIT)):
            started = time.perf_counter()
            with pytest.raises(StoreUnavailable, match=r"jobs.sqlite: database is locked; another process"):
                write()
            assert time.perf_counter() - started > WAIT / 2
        assert store.get(id).state == "queued"  # reads do not wait
        other.execute("ROLLBACK")
    assert store.start(id)
    assert len(store.recover()) == 1


@contextmanager
def small_database(store: JobStore) -> Iterator[None]:
    """Leave no room for one more page."""
    (unlimited,) = store.database.connection.execute("PRAGMA max_page_count").fetchone()
    store.database.connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead
    yield
    store.database.connection.execute(f"PRAGMA max_page_count = {unlimited}")


@contextmanager
def small_files(_: JobStore) -> Iterator[None]:
    """Limit the size of this process' files to 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(store: JobStore) -> Iterator[None]:
    store.database.connection.execute("PRAGMA query_only = ON")
    yield
    store.database.connection.execute("PRAGMA query_only = OFF")


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (small_database, "database or disk is full; free disk space"),
        (small_files, "disk I/O error; the disk fails or is full"),
        (read_only, "attempt to write a readonly database; the file and its directory must be writable"),
    ],
)
def test_write_refused_by_the_disk_changes_nothing(store: JobStore, path: Path, refusal: Callable, words: str) -> None:
    id = store.add(job()).id
    before = store.get(id)
    with refusal(store):
        with pytest.raises(StoreUnavailable, match=words):
            store.add(job(request=ImageRequest("long" * MB), idempotency_key="key"))
        with pytest.raises(StoreUnavailable, match=words):
            store.add_image(id, image(data=bytes(MB)))
        assert not store.database.connection.in_transaction
        assert store.history(9).jobs == [before]
        assert store.images(id) == []
    assert store.add_image(id, image(data=bytes(MB)))
    assert store.finish(id)
    assert store.add(job(idempotency_key="key")).state == "queued"
    store.close()
    with closing(JobStore(path)) as reopened:
        assert reopened.database.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert len(reopened.history(9).jobs) == 2


def test_end_of_a_job_needs_no_read_after_its_commit(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []

    def run(sql: str, *values: object) -> object:
        statements.append(sql)
        return rows(sql, *values)

    id, rows = store.add(job()).id, store.database.rows
    before = store.bytes_since_prune
    monkeypatch.setattr(store.database, "rows", run)
    assert store.cancel(id)
    assert len(statements) == 1
    assert not store.cancel(id)
    assert store.bytes_since_prune > before


def test_failed_recovery_is_rolled_back(store: JobStore) -> None:
    """The second of the statements of `recover` is refused."""
    running, waiting = store.add(job()).id, store.add(job(durable=False)).id
    store.start(running)
    store.database.connection.execute(
        "CREATE TEMP TRIGGER refuse BEFORE UPDATE ON jobs WHEN NEW.state = 'queued'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(sqlite3.IntegrityError, match="no"):
        store.recover()
    assert [store.get(id).state for id in (running, waiting)] == ["running", "queued"]
    store.database.connection.execute("DROP TRIGGER refuse")
    assert [j.id for j in store.recover()] == [running]


def overwritten(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + b"\xa5" * length + content[start + length :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda _: b"not a database" * 1000, "file is not a database; name another file"),
        (lambda content: overwritten(content, 0, 100), "file is not a database; name another file"),
        (lambda content: overwritten(content, 100, 3996), "malformed; put a copy"),
        (lambda content: content[:5000], "malformed; put a copy"),
    ],
)
def test_damaged_file_is_refused_and_left_as_it_is(path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    with closing(JobStore(path)) as store:
        generated(store)
    content = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(StoreUnavailable, match=f"jobs.sqlite: .*{words}"):
        JobStore(path)
    assert path.read_bytes() == content


def test_damage_found_while_reading_is_reported(path: Path) -> None:
    with closing(JobStore(path)) as store:
        ids = [generated(store, bytes(100_000)) for _ in range(10)]
    content = path.read_bytes()
    tables = 12 * 4096  # the pages that are read at opening; images follow
    path.write_bytes(overwritten(content, tables, len(content) - tables))
    with closing(JobStore(path)) as store, pytest.raises(StoreUnavailable, match="malformed; put a copy"):
        for id in ids:
            store.get(id)
            store.images(id)


def test_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"no/jobs.sqlite: unable to open database file; its directory"):
        JobStore(tmp_path / "no" / "jobs.sqlite")


@pytest.mark.parametrize("version", [1, VERSION + 1])
def test_another_schema_is_refused(path: Path, version: int) -> None:
    JobStore(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreUnavailable, match=f"schema {version}, but this zimage-trt reads schema {VERSION};"):
        JobStore(path)


def test_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path.with_name("mail"))) as foreign:
        foreign.execute("CREATE TABLE mail (x)")
    with pytest.raises(StoreUnavailable, match="mail is a database of another program"):
        JobStore(path.with_name("mail"))
