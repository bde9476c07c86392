"""The job store: states, images, history and recovery."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
from fakes.databases import Place
from fakes.jobs import ERROR, Clock, image, job

from engine.request import MAX_SEED, ImageRequest
from server.jobs.job import ImageFormat, new_id
from server.jobs.storage.store import JobStore


def test_ids_are_long_and_unique() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("job_") and len(id) == 36 for id in ids)


def test_stored_job_and_images_are_read_back_unchanged(place: Place) -> None:
    request = ImageRequest('"quotes", \0 and 红色的圆\U0001f534', 640, 512, MAX_SEED, 9)
    wanted = job(
        2,
        request=request,
        format=ImageFormat("webp", 80),
        owner="null",
        idempotency_key="1",
        deadline=1e9 + 0.1,
        client="192.0.2.1",
        previews=3,
        priority="batch",
        model="nano",
        plan_id="a plan",
        cost=0.1,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    with closing(place.open()) as store:
        assert store.add(wanted) == replace(wanted, sequence=1)
        assert store.get(wanted.id) == replace(wanted, sequence=1)
        for index in (1, 0):
            store.add_image(wanted.id, image(index, bytes(range(256))))
        assert store.images(wanted.id) == [image(index, bytes(range(256))) for index in (0, 1)]
        assert store.image(wanted.id, 1) == image(1, bytes(range(256)))


def test_database_uses_wal_and_normal_synchronous(store: JobStore) -> None:
    """With these settings, SQLite promises that a power cut damages nothing."""
    assert store.database.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store.database.connection.execute("PRAGMA synchronous").fetchone()[0] == 1  # NORMAL


@pytest.mark.parametrize("unknown", ["job_x", "job_\0"])
def test_unknown_id_returns_nothing_and_changes_nothing(either_store: JobStore, unknown: str) -> None:
    store = either_store
    assert store.get(unknown) is None
    assert store.image(unknown, 0) is None
    assert store.images(unknown) == store.metadata(unknown) == []
    assert not store.add_image(unknown, image())
    for change in (store.start, store.requeue, store.finish, store.cancel, store.delete):
        assert not change(unknown)


def test_job_of_an_older_version_gets_the_defaults_of_new_fields(store: JobStore) -> None:
    id = store.add(job()).id
    store.database.connection.execute("""UPDATE jobs SET request = '{"prompt": "old", "gone": 1}', format = '{}'""")
    assert store.get(id).request == ImageRequest("old")


def test_history_pages_do_not_shift_when_jobs_are_added_or_deleted(either_store: JobStore) -> None:
    store = either_store
    ids = [store.add(job()).id for _ in range(6)]
    first = store.history(2).jobs
    store.add(job())
    store.cancel(ids[5])
    store.delete(ids[5])
    second = store.history(2, first[-1].sequence).jobs
    assert [j.id for j in (*first, *second)] == ids[:1:-1]


ENDS = {
    "finish": JobStore.finish,
    "fail": lambda store, id: store.fail(id, ERROR),
    "cancel": JobStore.cancel,
}


@pytest.mark.parametrize("first", ENDS)
def test_ended_job_takes_no_further_change(place: Place, first: str) -> None:
    clock = Clock()
    with closing(place.open(clock)) as store:
        id = store.add(job()).id
        store.start(id)
        store.add_image(id, image())
        assert ENDS[first](store, id)
        ended = store.get(id)
        assert ended.state.is_final and ended.finished == clock.now
        clock.now += 1
        for later in ENDS.values():
            assert not later(store, id)
        assert not store.start(id)
        assert not store.requeue(id)
        assert not store.add_image(id, image())
        assert store.get(id) == ended
        assert store.recover() == []


def test_concurrent_ends_of_a_job_succeed_once(place: Place) -> None:
    """Two connections, like a server and one that still shuts down, end the same jobs differently."""
    with closing(place.open()) as one, closing(place.open()) as other, ThreadPoolExecutor(2) as threads:
        ids = [one.add(job()).id for _ in range(50)]
        cancelled = threads.submit(lambda: [one.cancel(id) for id in ids])
        failed = threads.submit(lambda: [other.fail(id, ERROR) for id in ids])
        assert all(a != b for a, b in zip(cancelled.result(), failed.result(), strict=True))
        expected = ["cancelled" if won else "failed" for won in cancelled.result()]
        assert [one.get(id).state for id in ids] == expected


def test_replay_keeps_the_first_start_and_counts_attempts(place: Place) -> None:
    clock = Clock()
    with closing(place.open(clock)) as store:
        id = store.add(job()).id
        assert store.start(id) and not store.start(id)
        clock.now += 5
        assert store.requeue(id) and store.start(id)
        assert (store.get(id).started, store.get(id).attempts) == (1000.0, 2)


def test_recovery_requeues_durable_jobs_and_fails_the_others(place: Place) -> None:
    with closing(place.open()) as store:
        queued, running = store.add(job(images=2)).id, store.add(job(images=2)).id
        waiting, pending = store.add(job(durable=False)).id, store.add(job(durable=False)).id
        store.start(running)
        store.add_image(running, image(1))
        store.start(pending)
    with closing(place.open()) as store:
        assert [(j.id, j.state, j.attempts) for j in store.recover()] == [(queued, "queued", 0), (running, "queued", 1)]
        assert store.images(running) == [image(1)]
        for id in (waiting, pending):
            assert (store.get(id).state, store.get(id).error.code) == ("failed", "server_restarted")
