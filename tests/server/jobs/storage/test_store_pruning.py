"""Pruning of the job store by age and by size."""

import math
import time
from contextlib import closing
from pathlib import Path

from fakes.databases import Place
from fakes.jobs import ERROR, MB, Clock, generated, image, job, pages, stored_size
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.request import ImageRequest
from server.jobs.storage.pruning import PRUNE_BATCH, VACUUM_PAGES
from server.jobs.storage.retention import DAY, Retention
from server.jobs.storage.store import JobStore


def by_size(max_bytes: float) -> Retention:
    return Retention(math.inf, max_bytes)


def test_jobs_older_than_max_age_are_pruned(place: Place) -> None:
    clock = Clock()
    with closing(place.open(clock)) as store:
        ids = []
        for _ in range(3):
            ids.append(generated(store))
            clock.now += 10
        unfinished = store.add(job(created=0.0)).id
        assert store.prune(Retention(max_age=20)) == 1
        assert [j.id for j in store.history(9).jobs] == [unfinished, ids[2], ids[1]]
        assert store.images(ids[0]) == []


def test_first_ended_job_is_pruned_first(place: Place) -> None:
    clock = Clock()
    with closing(place.open(clock)) as store:
        ids = [store.add(job()).id for _ in range(3)]
        for id in (ids[1], ids[2], ids[0]):
            clock.now += 1
            store.start(id)
            store.add_image(id, image(data=bytes(10)))
            store.finish(id)
        for gone in (ids[1], ids[2]):
            held = sum(10 + stored_size(kept) for kept in store.history(9).jobs)
            assert store.prune(by_size(held)) == 0
            assert store.prune(by_size(held - 1)) == 1
            assert store.get(gone) is None


def test_pruning_by_size_shrinks_the_file_in_parts(store: JobStore, path: Path) -> None:
    size = MB
    failed = store.add(job()).id
    store.fail(failed, ERROR)
    ids = [generated(store, bytes(size)) for _ in range(40)]
    unfinished = store.add(job()).id
    store.add_image(unfinished, image(data=bytes(size)))
    assert store.prune(by_size(42 * size)) == 0
    full = path.stat().st_size
    assert [store.prune(by_size(2.5 * size)) for _ in range(2)] == [PRUNE_BATCH, 39 - PRUNE_BATCH]
    assert [j.id for j in store.history(99).jobs] == [unfinished, ids[39], ids[38]]
    assert full - 3 * VACUUM_PAGES * 4096 < path.stat().st_size < full - VACUUM_PAGES * 4096 / 2  # in parts
    for _ in range(3):
        assert store.prune(by_size(2.5 * size)) == 0
    assert path.stat().st_size < 5 * size
    assert store.prune(by_size(0)) == 2
    assert len(store.images(unfinished)) == 1  # it does not count


def test_bytes_of_images_and_ended_jobs_are_counted_until_the_next_pruning(either_store: JobStore) -> None:
    store = either_store
    added = store.add(job())
    assert store.bytes_since_prune == 0
    store.add_image(added.id, image(data=bytes(100)))
    assert store.bytes_since_prune == 100
    store.finish(added.id)
    assert store.bytes_since_prune == 100 + stored_size(added)
    store.prune(Retention())
    assert store.bytes_since_prune == 0


def test_cancelled_jobs_of_one_owner_push_out_no_image_of_another(either_store: JobStore) -> None:
    store = either_store
    kept = [generated(store, bytes(2 * MB), owner="alice") for _ in range(20)]
    for _ in range(36):  # clients that hang up
        store.cancel(store.add(job(owner="bob", request=ImageRequest("x" * MB))).id)
    while store.prune(by_size(64 * MB)):
        pass
    assert [j.id for j in store.history(99, owner="alice").jobs] == kept[::-1]
    assert len(pages(store, 99, owner="bob")) == 23


def test_owner_who_uses_most_loses_the_oldest_done_jobs(either_store: JobStore) -> None:
    store = either_store
    kept = generated(store, bytes(MB), owner="alice")
    ids = [generated(store, bytes(MB), owner="bob") for _ in range(5)]
    assert store.prune(by_size(4.5 * MB)) == 2
    assert store.get(kept) and [j.id for j in store.history(9, owner="bob").jobs] == ids[:1:-1]


@given(
    jobs=st.lists(
        st.tuples(st.sampled_from([None, "alice", "bob", "carol"]), st.booleans(), st.integers(0, 20)), max_size=40
    ),
    max_kb=st.integers(0, 300),
)
@settings(max_examples=100, deadline=None)
def test_owner_within_an_equal_share_loses_no_done_job(jobs: list[tuple[str | None, bool, int]], max_kb: int) -> None:
    with closing(JobStore(None)) as store:
        used, done = dict.fromkeys((owner for owner, _, _ in jobs), 0), dict[str, str | None]()
        for owner, is_done, kb in jobs:
            if is_done:
                id = generated(store, bytes(kb << 10), owner=owner)
                used[owner] += (kb << 10) + stored_size(store.get(id))
                done[id] = owner
            else:
                store.cancel(store.add(job(owner=owner, request=ImageRequest("x" * (kb << 10)))).id)
        while store.prune(by_size(max_kb << 10)):
            pass
        left = store.database.rows("SELECT coalesce(sum(bytes), 0) AS bytes FROM jobs")[0]["bytes"]
        assert left <= max_kb << 10
        for id, owner in done.items():
            assert store.get(id) or used[owner] > (max_kb << 10) / len(used)


def test_end_is_never_before_the_start_even_if_the_clock_is_set_back(place: Place) -> None:
    clock = Clock()
    with closing(place.open(clock)) as store:
        waiting, started = store.add(job(created=clock.now)).id, store.add(job(created=clock.now)).id
        clock.now += 10
        store.start(started)
        clock.now -= 500
        store.cancel(waiting)
        store.fail(started, ERROR)
        assert [store.get(id).finished for id in (waiting, started)] == [1000.0, 1010.0]


def test_clock_set_ahead_deletes_no_job_by_age_for_a_day_of_running(place: Place) -> None:
    clock, uptime = Clock(), Clock()
    with closing(place.open()) as store:
        added = store.add(job(durable=False, created=time.time())).id
        kept = generated(store, created=time.time())
    clock.now = time.time() + 10 * DAY
    with closing(place.open(clock, uptime)) as store:
        store.recover()  # ends the first job by the wrong clock
        assert store.prune(Retention()) == 0
        assert store.get(kept)
        clock.now += DAY
        uptime.now += DAY
        assert store.prune(Retention()) == 1
        assert store.get(kept) is None and store.get(added)
