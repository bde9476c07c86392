"""Idempotency keys: one job per key, however many requests and stores add the job."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import pytest
from fakes.databases import Place
from fakes.jobs import job

from server.errors import IdempotencyKeyReused, StoreUnavailable
from server.jobs.job import Job
from server.jobs.storage.store import JobStore

WAIT_FOR_THREADS = 20  # seconds


def test_concurrent_requests_with_one_key_make_one_job(place: Place, either_store: JobStore) -> None:
    store, together = either_store, threading.Barrier(16, timeout=WAIT_FOR_THREADS)
    lock = nullcontext() if place.is_shared else threading.Lock()

    def add(_: int) -> Job:
        together.wait()
        with lock:
            return store.add(job(idempotency_key="key"))

    with ThreadPoolExecutor(16) as threads:
        assert len({added.id for added in threads.map(add, range(16))}) == 1
    assert len(store.history(99).jobs) == 1


def test_two_stores_with_one_key_make_one_job(place: Place) -> None:
    together = threading.Barrier(2, timeout=WAIT_FOR_THREADS)

    def add(store: JobStore) -> list[str]:
        ids = []
        for key in range(100):
            together.wait()
            ids.append(store.add(job(idempotency_key=str(key))).id)
        return ids

    with closing(place.open()) as one, closing(place.open()) as other, ThreadPoolExecutor(2) as threads:
        first, second = threads.map(add, (one, other))
        assert first == second
        assert len(one.history(999).jobs) == 100


@pytest.mark.parametrize("moment", ["BEGIN", "INSERT", "COMMIT"])
def test_key_added_by_another_store_at_any_moment_makes_one_job(store: JobStore, path: Path, moment: str) -> None:
    attempts = []

    def intrude(statement: str) -> None:  # called before the statement runs
        if statement.startswith(moment) and not attempts:
            attempts.append(statement)
            with suppress(StoreUnavailable):
                other.add(job(idempotency_key="key"))

    with closing(JobStore(path, busy_timeout=0)) as other:
        store.database.connection.set_trace_callback(intrude)
        added = store.add(job(idempotency_key="key"))
        assert attempts
        assert other.add(job(idempotency_key="key")) == added
        assert other.history(9).jobs == [added]


def test_key_of_another_request_is_refused(either_store: JobStore) -> None:
    store = either_store
    store.add(job(idempotency_key="key", fingerprint="one"))
    with pytest.raises(IdempotencyKeyReused, match="'key' was used for another request"):
        store.add(job(idempotency_key="key", fingerprint="another"))
    store.add(job(idempotency_key="key", fingerprint="another", owner="somebody else"))
    assert len(store.unfinished()) == 2
