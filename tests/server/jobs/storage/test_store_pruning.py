"""Pruning of the job store by age and by size."""

import math
from contextlib import closing
from pathlib import Path

from fakes.jobs import ERROR, MB, Clock, generated, image, job, stored_size

from server.jobs.storage.retention import Retention
from server.jobs.storage.store import PRUNE_BATCH, VACUUM_PAGES, JobStore


def by_size(max_bytes: float) -> Retention:
    return Retention(math.inf, max_bytes)


def test_jobs_older_than_max_age_are_pruned(path: Path) -> None:
    clock = Clock()
    with closing(JobStore(path, clock=clock)) as store:
        ids = []
        for _ in range(3):
            ids.append(generated(store))
            clock.now += 10
        unfinished = store.add(job(created=0.0)).id
        assert store.prune(Retention(max_age=20)) == 1
        assert [j.id for j in store.history(9).jobs] == [unfinished, ids[2], ids[1]]
        assert store.images(ids[0]) == []


def test_first_ended_job_is_pruned_first(path: Path) -> None:
    clock = Clock()
    with closing(JobStore(path, clock=clock)) as store:
        ids = [store.add(job()).id for _ in range(3)]
        for id in (ids[1], ids[2], ids[0]):
            clock.now += 1
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
    assert [store.prune(by_size(3.5 * size)) for _ in range(2)] == [PRUNE_BATCH, 39 - PRUNE_BATCH]
    assert [j.id for j in store.history(99).jobs] == [unfinished, ids[39], ids[38]]
    assert full - 3 * VACUUM_PAGES * 4096 < path.stat().st_size < full - VACUUM_PAGES * 4096 / 2  # in parts
    for _ in range(3):
        assert store.prune(by_size(3.5 * size)) == 0
    assert path.stat().st_size < 5 * size
    assert store.prune(by_size(0)) == 2
    assert len(store.images(unfinished)) == 1  # over the limit, but the job is unfinished


def test_bytes_of_images_and_ended_jobs_are_counted_until_the_next_pruning(store: JobStore) -> None:
    added = store.add(job())
    assert store.bytes_since_prune == 0
    store.add_image(added.id, image(data=bytes(100)))
    assert store.bytes_since_prune == 100
    store.finish(added.id)
    assert store.bytes_since_prune == 100 + stored_size(added)
    store.prune(Retention())
    assert store.bytes_since_prune == 0
