"""The job store: what was accepted is there when the file is opened again, and a job ends once."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.jobs import ERROR, MB, Clock, generated, image, job
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from engine.request import MAX_SEED, ImageRequest
from server.jobs.job import ImageFormat, Job, JobError, JobState, StoredImage, new_id
from server.jobs.store import PRUNED, VACUUM_PAGES, IdempotencyMismatch, JobStore, StoreUnavailable, size_of

ROOM = 1 << 60  # bytes; never reached
WAIT_FOR_THREADS = 20  # seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[JobStore]:
    with closing(JobStore(path)) as opened:
        yield opened


def test_ids_cannot_be_guessed() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("job_") and len(id) == 36 for id in ids)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_put_in_comes_out(path: Path, in_memory: bool) -> None:
    requests = (
        ImageRequest('"quotes", \0 and 红色的圆\U0001f534', 640, 512, MAX_SEED, 9),
        ImageRequest("", None, None, 0, None),
    )
    wanted = job(
        requests=requests, format=ImageFormat("webp", 80), owner="null", idempotency_key="1", deadline=1e9 + 0.1
    )
    with closing(JobStore(None if in_memory else path)) as store:
        assert store.add(wanted) == replace(wanted, sequence=1)
        assert store.get(wanted.id) == replace(wanted, sequence=1)
        for index in (1, 0):
            store.add_image(wanted.id, image(index, bytes(range(256))))
        assert store.images(wanted.id) == [image(index, bytes(range(256))) for index in (0, 1)]
        assert store.image(wanted.id, 1) == image(1, bytes(range(256)))


def test_a_power_cut_damages_nothing(store: JobStore) -> None:
    """As far as can be seen without one: what SQLite promises it for is set."""
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store._connection.execute("PRAGMA synchronous").fetchone()[0] == 1  # NORMAL


def test_what_is_unknown_is_said_to_be(store: JobStore) -> None:
    assert store.get("job_x") is None
    assert store.image("job_x", 0) is None
    assert store.images("job_x") == store.metadata("job_x") == []
    assert not store.add_image("job_x", image())
    for change in (store.begin, store.requeue, store.finish, store.cancel, store.delete):
        assert not change("job_x")


def test_a_job_from_an_older_version_gets_the_defaults_of_new_fields(store: JobStore) -> None:
    id = store.add(job()).id
    store._connection.execute("""UPDATE jobs SET requests = '[{"prompt": "old", "gone": 1}]', format = '{}'""")
    assert store.get(id).requests == (ImageRequest("old"),)


class StoreMachine(RuleBasedStateMachine):
    """A store on a file against a dict."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.jobs: dict[str, Job] = {}  # in the order of acceptance
        self.generated: dict[str, dict[int, StoredImage]] = {}
        self.accepted = 0

    @initialize()
    def open(self) -> None:
        self.store = JobStore(Path(self.directory.name) / "jobs.sqlite", clock=self.clock)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(
        target=ids,
        images=st.integers(1, 3),
        owner=st.sampled_from([None, "alice", "bob"]),
        key=st.sampled_from([None, "first", "second"]),
        fingerprint=st.sampled_from("xy"),
        durable=st.booleans(),
    )
    def add(self, images: int, owner: str | None, key: str | None, fingerprint: str, durable: bool) -> object:
        id = f"job_{999 - self.accepted}"  # sorted they are not in the order of acceptance
        new = job(images, id=id, owner=owner, idempotency_key=key, fingerprint=fingerprint, durable=durable)
        same = [j for j in self.jobs.values() if key and (j.owner, j.idempotency_key) == (owner, key)]
        if not same:
            self.accepted += 1
            self.jobs[new.id], self.generated[new.id] = replace(new, sequence=self.accepted), {}
            assert self.store.add(new) == self.jobs[new.id]
            return new.id
        if same[0].fingerprint == fingerprint:
            assert self.store.add(new) == same[0]
        else:
            with pytest.raises(IdempotencyMismatch):
                self.store.add(new)
        return multiple()

    @rule(id=ids)
    def begin(self, id: str) -> None:
        now = self.tick()
        old = self.jobs.get(id)
        queued = old is not None and old.state == "queued"
        assert self.store.begin(id) == queued
        if queued:
            self.update(id, state=JobState.RUNNING, attempts=old.attempts + 1, started=old.started or now)

    @rule(id=ids)
    def requeue(self, id: str) -> None:
        running = id in self.jobs and self.jobs[id].state == "running"
        assert self.store.requeue(id) == running
        if running:
            self.update(id, state=JobState.QUEUED)

    @rule(id=ids, index=st.integers(0, 2), size=st.integers(0, 1000))
    def add_image(self, id: str, index: int, size: int) -> None:
        if id in self.jobs and index >= len(self.jobs[id].requests):
            return
        new = image(index, bytes(size))
        assert self.store.add_image(id, new) == self.is_open(id)
        if self.is_open(id):
            self.generated[id].setdefault(index, new)

    @rule(id=ids)
    def finish(self, id: str) -> None:
        if self.is_open(id) and len(self.generated[id]) < len(self.jobs[id].requests):
            with pytest.raises(AssertionError):
                self.store.finish(id)
        else:
            self.end(id, self.store.finish, JobState.DONE)

    @rule(id=ids)
    def fail(self, id: str) -> None:
        self.end(id, lambda id: self.store.fail(id, ERROR), JobState.FAILED, ERROR)

    @rule(id=ids)
    def cancel(self, id: str) -> None:
        self.end(id, self.store.cancel, JobState.CANCELLED)

    @rule(id=consumes(ids))
    def delete(self, id: str) -> None:
        deletable = id in self.jobs and not self.is_open(id)
        assert self.store.delete(id) == deletable
        if deletable:
            self.forget(id)

    @rule(age=st.integers(0, 20), max_bytes=st.integers(0, 9000))
    def prune(self, age: int, max_bytes: int) -> None:
        older_than, before = self.tick() - age, len(self.jobs)
        for id in [id for id in self.jobs if not self.is_open(id) and self.jobs[id].finished < older_than]:
            self.forget(id)
        while sum(map(self.bytes_of, self.jobs)) > max_bytes:
            ended = [id for id in self.jobs if not self.is_open(id)]
            if not ended:
                break
            self.forget(min(ended, key=lambda id: (self.jobs[id].finished, self.jobs[id].sequence)))
        assert self.store.prune(older_than, max_bytes) == before - len(self.jobs)

    @rule()
    def recover(self) -> None:
        now = self.tick()
        for id in filter(self.is_open, list(self.jobs)):
            if self.jobs[id].durable:
                self.update(id, state=JobState.QUEUED)
            else:
                error = JobError("server_restarted", "")
                self.update(id, state=JobState.FAILED, finished=now, error=error)
        recovered = self.store.recover()
        self.take_over_messages()
        assert recovered == [j for j in self.jobs.values() if self.is_open(j.id)]

    @invariant()
    def everything_is_there(self) -> None:
        for id, expected in self.jobs.items():
            assert self.store.get(id) == expected
            there = self.generated[id]
            assert self.store.images(id) == [there[index] for index in sorted(there)]
        assert self.store.unfinished() == [j for j in self.jobs.values() if self.is_open(j.id)]

    @invariant()
    def history_has_every_job_once(self) -> None:
        for owner in (None, "alice", "bob"):
            expected = [j for j in reversed(self.jobs.values()) if j.owner == owner]
            assert pages(self.store, 2, owner) == expected

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def tick(self) -> float:
        self.clock.now += 1
        return self.clock.now

    def is_open(self, id: str) -> bool:
        return id in self.jobs and not self.jobs[id].state.is_final

    def bytes_of(self, id: str) -> int:
        ended = 0 if self.is_open(id) else size_of(self.jobs[id])
        return ended + sum(len(p.data) for p in self.generated[id].values())

    def update(self, id: str, **changes: object) -> None:
        self.jobs[id] = replace(self.jobs[id], **changes)

    def forget(self, id: str) -> None:
        del self.jobs[id], self.generated[id]

    def end(self, id: str, change: Callable[[str], bool], state: JobState, error: JobError | None = None) -> None:
        now = self.tick()
        assert change(id) == self.is_open(id)
        if self.is_open(id):
            self.update(id, state=state, finished=now, error=error)

    def take_over_messages(self) -> None:
        """Of "server_restarted" only the code is promised."""
        for id, expected in self.jobs.items():
            if expected.error == JobError("server_restarted", ""):
                found = self.store.get(id)
                assert found.error.code == "server_restarted" and found.error.message
                self.update(id, error=found.error)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def pages(store: JobStore, limit: int, owner: str | None = None) -> list[Job]:
    """The whole history, page by page."""
    found: list[Job] = []
    while page := store.history(limit, found[-1].sequence if found else None, owner):
        assert len(page) <= limit and page[0] not in found
        found += page
    return found


def test_pages_do_not_move_when_jobs_come_and_go(store: JobStore) -> None:
    ids = [store.add(job()).id for _ in range(6)]
    first = store.history(2)
    store.add(job())
    store.cancel(ids[5])
    store.delete(ids[5])
    second = store.history(2, first[-1].sequence)
    assert [j.id for j in (*first, *second)] == ids[:1:-1]


ENDS = {
    "finish": JobStore.finish,
    "fail": lambda store, id: store.fail(id, ERROR),
    "cancel": JobStore.cancel,
}


@pytest.mark.parametrize("first", ENDS)
def test_a_job_ends_once(path: Path, first: str) -> None:
    clock = Clock()
    with closing(JobStore(path, clock=clock)) as store:
        id = store.add(job()).id
        store.begin(id)
        store.add_image(id, image())
        assert ENDS[first](store, id)
        ended = store.get(id)
        assert ended.state.is_final and ended.finished == clock.now
        clock.now += 1
        for later in ENDS.values():
            assert not later(store, id)
        assert not store.begin(id)
        assert not store.requeue(id)
        assert not store.add_image(id, image())
        assert store.get(id) == ended
        assert store.recover() == []


def test_of_many_that_end_a_job_one_does(path: Path) -> None:
    """Two connections, as a server and one that still shuts down, end the same jobs in opposite ways."""
    with closing(JobStore(path)) as one, closing(JobStore(path)) as other, ThreadPoolExecutor(2) as threads:
        ids = [one.add(job()).id for _ in range(50)]
        cancelled = threads.submit(lambda: [one.cancel(id) for id in ids])
        failed = threads.submit(lambda: [other.fail(id, ERROR) for id in ids])
        assert all(a != b for a, b in zip(cancelled.result(), failed.result(), strict=True))
        expected = ["cancelled" if won else "failed" for won in cancelled.result()]
        assert [one.get(id).state for id in ids] == expected


def test_started_is_the_first_time_and_attempts_count(path: Path) -> None:
    clock = Clock()
    with closing(JobStore(path, clock=clock)) as store:
        id = store.add(job()).id
        assert store.begin(id) and not store.begin(id)
        clock.now += 5
        assert store.requeue(id) and store.begin(id)
        assert (store.get(id).started, store.get(id).attempts) == (1000.0, 2)


def test_sixteen_requests_with_one_key_are_one_job(store: JobStore) -> None:
    lock, together = threading.Lock(), threading.Barrier(16, timeout=WAIT_FOR_THREADS)

    def add(_: int) -> Job:
        together.wait()
        with lock:
            return store.add(job(idempotency_key="key"))

    with ThreadPoolExecutor(16) as threads:
        assert len({added.id for added in threads.map(add, range(16))}) == 1
    assert len(store.history(99)) == 1


def test_two_stores_with_one_key_make_one_job(path: Path) -> None:
    together = threading.Barrier(2, timeout=WAIT_FOR_THREADS)

    def add(store: JobStore) -> list[str]:
        ids = []
        for key in range(100):
            together.wait()
            ids.append(store.add(job(idempotency_key=str(key))).id)
        return ids

    with closing(JobStore(path)) as one, closing(JobStore(path)) as other, ThreadPoolExecutor(2) as threads:
        first, second = threads.map(add, (one, other))
        assert first == second
        assert len(one.history(999)) == 100


@pytest.mark.parametrize("moment", ["BEGIN", "SELECT", "INSERT", "COMMIT"])
def test_whenever_another_store_adds_the_same_key_there_is_one_job(store: JobStore, path: Path, moment: str) -> None:
    attempts = []

    def intrude(statement: str) -> None:  # called before the statement runs
        if statement.startswith(moment) and not attempts:
            attempts.append(statement)
            with suppress(StoreUnavailable):
                other.add(job(idempotency_key="key"))

    with closing(JobStore(path, busy_timeout=0)) as other:
        store._connection.set_trace_callback(intrude)
        added = store.add(job(idempotency_key="key"))
        assert attempts
        assert other.add(job(idempotency_key="key")) == added
        assert other.history(9) == [added]


def test_a_key_of_another_request_is_refused_by_name(store: JobStore) -> None:
    store.add(job(idempotency_key="key", fingerprint="one"))
    with pytest.raises(IdempotencyMismatch, match="'key' was used for another request"):
        store.add(job(idempotency_key="key", fingerprint="another"))
    store.add(job(idempotency_key="key", fingerprint="another", owner="somebody else"))
    assert len(store.unfinished()) == 2


def test_recovery_goes_on_with_durable_jobs_only(path: Path) -> None:
    with closing(JobStore(path)) as store:
        queued, running = store.add(job(images=2)).id, store.add(job(images=2)).id
        waiting, pending = store.add(job(durable=False)).id, store.add(job(durable=False)).id
        store.begin(running)
        store.add_image(running, image(1))
        store.begin(pending)
    with closing(JobStore(path)) as store:
        assert [(j.id, j.state, j.attempts) for j in store.recover()] == [(queued, "queued", 0), (running, "queued", 1)]
        assert store.images(running) == [image(1)]
        for id in (waiting, pending):
            assert (store.get(id).state, store.get(id).error.code) == ("failed", "server_restarted")


def test_jobs_go_by_age(path: Path) -> None:
    clock = Clock()
    with closing(JobStore(path, clock=clock)) as store:
        ids = []
        for _ in range(3):
            ids.append(generated(store))
            clock.now += 10
        unfinished = store.add(job(created=0.0)).id
        assert store.prune(1010.0, ROOM) == 1
        assert [j.id for j in store.history(9)] == [unfinished, ids[2], ids[1]]
        assert store.images(ids[0]) == []


def test_the_first_that_ended_goes_first(path: Path) -> None:
    clock = Clock()
    with closing(JobStore(path, clock=clock)) as store:
        ids = [store.add(job()).id for _ in range(3)]
        for id in (ids[1], ids[2], ids[0]):
            clock.now += 1
            store.add_image(id, image(data=bytes(10)))
            store.finish(id)
        for gone in (ids[1], ids[2]):
            held = sum(10 + size_of(kept) for kept in store.history(9))
            assert store.prune(0, held) == 0
            assert store.prune(0, held - 1) == 1
            assert store.get(gone) is None


def test_jobs_go_by_bytes_and_the_file_shrinks(store: JobStore, path: Path) -> None:
    size = MB
    failed = store.add(job()).id
    store.fail(failed, ERROR)
    ids = [generated(store, bytes(size)) for _ in range(40)]
    unfinished = store.add(job()).id
    store.add_image(unfinished, image(data=bytes(size)))
    assert store.prune(0, 42 * size) == 0
    full = path.stat().st_size
    assert [store.prune(0, 3 * size + size // 2) for _ in range(2)] == [PRUNED, 39 - PRUNED]
    assert [j.id for j in store.history(99)] == [unfinished, ids[39], ids[38]]
    assert full - 3 * VACUUM_PAGES * 4096 < path.stat().st_size < full - VACUUM_PAGES * 4096 / 2  # a part at a time
    for _ in range(3):
        assert store.prune(0, 3 * size + size // 2) == 0
    assert path.stat().st_size < 5 * size
    assert store.prune(0, 0) == 2
    assert len(store.images(unfinished)) == 1  # more than allowed, but still wanted
