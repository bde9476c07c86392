"""PostgreSQL under a job store: errors with advice, lost connections, versions of the schema."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psycopg
import pytest
from fakes.jobs import generated, image, job
from fakes.services import PostgreSql, new

from server.errors import StoreUnavailable
from server.jobs.storage.databases import postgres, postgres_connections
from server.jobs.storage.databases.database import Lock
from server.jobs.storage.databases.postgres import _explained
from server.jobs.storage.databases.schema import UPGRADES, VERSION
from server.jobs.storage.retention import Retention
from server.jobs.storage.store import JobStore
from server.worker.packed_image import PackedImage

PREPARED = 8  # calls after which psycopg has prepared a statement
NEWS = tuple(f"ALTER TABLE {table} ADD COLUMN news TEXT NOT NULL DEFAULT ''" for table in ("jobs", "images"))
SOON = 20.0  # seconds in which a server that was started again answers


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgreSql]:
    """A server that tests of this module stop and kill."""
    with new(PostgreSql) as service:
        yield service


def eventually(call: object) -> object:
    """Repeat a call until the store is available."""
    until = time.monotonic() + SOON
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("@", "@["), "the URL of the database is not valid; write postgresql"),
        (lambda url: url + "?ssl=1", "the URL of the database is not valid; write postgresql"),
        (lambda url: url.rpartition(":")[0] + ":1/zimage", "onnection refused.*start the server, or correct"),
        (lambda url: url.replace("://zimage:", "://zimage:x"), "password authentication failed.*start the server, or"),
        (lambda url: url + "_unknown", 'database "[a-z0-9_]*_unknown" does not exist.*or correct the host'),
        (lambda url: url + "?options=-cdefault_transaction_read_only%3Don", "read-only transaction; it is a read-only"),
    ],
)
def test_database_that_cannot_be_opened_is_explained_without_its_password(
    postgres_url: str, change: object, words: str
) -> None:
    with pytest.raises(StoreUnavailable, match=words) as raised:
        JobStore(change(postgres_url))
    assert postgres_url.split(":")[2].partition("@")[0] not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (psycopg.errors.DiskFull("could not extend file"), "could not extend file; free disk space on its machine"),
        (psycopg.errors.TooManyConnections("too many clients"), "raise its max_connections"),
        (psycopg.errors.AdminShutdown("terminating connection"), "it stops, starts or is being restarted"),
        (psycopg.errors.DeadlockDetected("deadlock"), "another process changed the same rows"),
        (psycopg.errors.InsufficientPrivilege("denied"), "its user must own the tables"),
        (psycopg.errors.DataCorrupted("invalid page"), "its data are damaged"),
        (psycopg.OperationalError("server closed\nthe connection"), "server closed the connection; the connection was"),
    ],
)
def test_error_of_the_server_has_advice(error: Exception, advice: str) -> None:
    with pytest.raises(StoreUnavailable, match=f"^the store: .*{advice}"), _explained("the store"):
        raise error


def test_mistake_in_a_statement_is_not_called_unavailable(store_url: str) -> None:
    with closing(JobStore(store_url)) as store, pytest.raises(psycopg.errors.UndefinedTable):
        store.database.rows("SELECT * FROM nothing")


def test_database_of_another_program_is_refused(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("CREATE TABLE jobs (x integer)")
    with pytest.raises(StoreUnavailable, match="is a database of another program; name another one"):
        JobStore(postgres_url)


def test_processes_that_open_an_empty_database_at_once_create_one_schema(postgres_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: JobStore(postgres_url), range(4)))
    added = stores[0].add(job())
    for store in stores:
        assert store.get(added.id) == added
        store.close()


@pytest.mark.parametrize(("readable_from", "is_usable"), [(VERSION, True), (VERSION + 1, False)])
def test_newer_schema_is_used_if_it_allows_that(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, readable_from: int, is_usable: bool
) -> None:
    """A fleet is upgraded one process after the other: the first carries the database over, beside the old ones."""
    with closing(JobStore(postgres_url)) as old:
        before = old.add(job())
        for _ in range(PREPARED):
            assert old.get(before.id) == before
            assert old.images(before.id) == []
        with monkeypatch.context() as newer:
            newer.setattr(postgres, "VERSION", VERSION + 1)
            newer.setattr(postgres, "READABLE_FROM", readable_from)
            newer.setitem(UPGRADES, VERSION, NEWS)
            with closing(JobStore(postgres_url)) as store:
                assert store.get(before.id) == before
        assert (old.get(before.id), old.images(before.id)) == (before, [])
        assert old.add(job()).sequence == 2
    if is_usable:
        JobStore(postgres_url).close()
    else:
        with pytest.raises(
            StoreUnavailable, match=f"has schema {VERSION + 1}, but this zimage-trt reads schema {VERSION};"
        ):
            JobStore(postgres_url)


def test_killed_server_makes_the_store_unavailable_until_it_is_back(own_server: PostgreSql) -> None:
    """Every answered write is there afterwards; a write without an answer may be repeated."""
    with closing(JobStore(own_server.fresh_url(), busy_timeout=1.0)) as store:
        answered: list[str] = []
        refusals: list[str] = []
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                wanted = job(idempotency_key=os.urandom(8).hex())
                while True:
                    try:
                        assert store.add(wanted).id == wanted.id
                        assert store.add_image(wanted.id, image())
                        break
                    except StoreUnavailable as error:
                        refusals.append(str(error))
                        if stop.wait(0.01):
                            return
                answered.append(wanted.id)

        with ThreadPoolExecutor(4) as threads:
            writing = [threads.submit(write) for _ in range(4)]
            try:
                while len(answered) < 20:
                    time.sleep(0.01)
                own_server.kill()
                while not refusals:
                    time.sleep(0.01)
                own_server.start()
                after = len(answered)
                until = time.monotonic() + SOON
                while len(answered) < after + 20:
                    assert time.monotonic() < until, refusals[-1]
                    time.sleep(0.01)
            finally:
                stop.set()
            for each in writing:
                each.result()
        assert [id for id in answered if store.images(id) != [image()]] == []
        assert all("the job store postgresql://" in refusal or "cannot connect to" in refusal for refusal in refusals)


def test_server_that_was_restarted_while_the_store_was_idle_is_not_noticed(
    own_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connections, "TRUSTED_SECONDS", 0.0)
    with closing(JobStore(own_server.fresh_url())) as store:
        added = store.add(job())
        own_server.restart()
        assert store.get(added.id) == added


def test_interrupted_transaction_is_undone_and_its_connection_replaced(store_url: str) -> None:
    with closing(JobStore(store_url)) as store:
        with pytest.raises(StoreUnavailable), store.database.transaction():
            id = store._insert(job(), None).id
            pid = store.database.rows("SELECT pg_backend_pid() AS pid")[0]["pid"]
            with psycopg.connect(store_url, autocommit=True) as administrator:
                administrator.execute("SELECT pg_terminate_backend(%s)", [pid])
            store.get(id)
        assert store.get(id) is None
        assert store.add(job())


def test_process_that_stops_in_a_transaction_holds_up_others_for_a_bounded_time(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connections, "STOPPED_SECONDS", 0.3)
    with closing(JobStore(store_url)) as stopped, closing(JobStore(store_url, busy_timeout=0.1)) as other:
        with (
            pytest.raises(StoreUnavailable, match="paused in the middle of a transaction"),
            stopped.database.transaction(),
        ):
            stopped.database.lock(Lock.CLAIM)
            with pytest.raises(StoreUnavailable, match="holds a lock for long"), other.database.transaction():
                other.database.lock(Lock.CLAIM)
            eventually(lambda: _lock(other))
            stopped.database.now()
        assert stopped.database.now()


def _lock(store: JobStore) -> None:
    with store.database.transaction():
        store.database.lock(Lock.CLAIM)


def test_call_that_finds_all_connections_in_use_is_refused(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_connections, "MAX_CONNECTIONS", 1)
    with closing(JobStore(store_url, busy_timeout=0.1)) as store, ThreadPoolExecutor(1) as threads:
        with store.database.transaction():
            waiting = threads.submit(store.get, "job_x")
            with pytest.raises(StoreUnavailable, match=r"all 1 connections to postgresql://.* are in use"):
                waiting.result()
        assert threads.submit(store.get, "job_x").result() is None


def test_transactions_of_threads_are_apart(store_url: str) -> None:
    wanted = job()
    with closing(JobStore(store_url)) as store, ThreadPoolExecutor(1) as threads:
        with suppress(ZeroDivisionError), store.database.transaction():
            store._insert(wanted, None)
            assert store.get(wanted.id) and threads.submit(store.get, wanted.id).result() is None
            raise ZeroDivisionError
        assert store.get(wanted.id) is None


def test_one_process_prunes_at_a_time(store_url: str) -> None:
    with closing(JobStore(store_url)) as store, closing(JobStore(store_url)) as other:
        generated(store)
        with other.database.transaction():
            assert other.database.try_lock(Lock.PRUNER)
            assert store.prune(Retention(max_age=0.0)) == 0
        assert store.prune(Retention(max_age=0.0)) == 1


def test_pruning_sees_what_other_processes_did(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.storage.pruning.PRUNE_BATCH", 1)
    with closing(JobStore(store_url)) as store, closing(JobStore(store_url)) as other:
        ids = [generated(store, bytes(900_000)) for _ in range(3)]
        assert store.prune(Retention(max_bytes=1e6)) == 1
        other.delete(ids[1])
        assert store.prune(Retention(max_bytes=1e6)) == 0
        assert store.get(ids[2])


def test_statements_with_images_are_not_prepared(store_url: str) -> None:
    """Else an image that takes longer than STOPPED_SECONDS on its way is lost with its connection."""
    with closing(JobStore(store_url)) as store:
        for _ in range(PREPARED):
            id = store.add(job(), PackedImage(b"packed", 6)).id
            store.start(id)
            assert store.add_image(id, image())
        prepared = [row["statement"] for row in store.database.rows("SELECT statement FROM pg_prepared_statements")]
    assert any("INSERT INTO jobs" in statement for statement in prepared)
    assert not any("INSERT INTO init_images" in each or "INSERT INTO images" in each for each in prepared)


def test_images_are_stored_as_they_are_without_compression(store_url: str) -> None:
    """PNG and WebP do not get smaller, and PostgreSQL would try it for each."""
    with psycopg.connect(store_url) as connection:
        found = connection.execute(
            "SELECT attstorage FROM pg_attribute WHERE attrelid = 'images'::regclass AND attname = 'data'"
        )
        assert found.fetchone() == ("e",)
