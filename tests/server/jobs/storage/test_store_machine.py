"""Random sequences of calls to a job store, compared with a dictionary."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.databases import Place, empty
from fakes.jobs import ERROR, Clock, image, job, pages, stored_size
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from server.errors import IdempotencyKeyReused
from server.jobs.job import Job, JobError, JobState, StoredImage
from server.jobs.storage.retention import Retention

OWNERS = [None, "alice", "bob"]


class StoreMachine(RuleBasedStateMachine):
    """A store, and a dictionary that must agree with it. `url`: of a database; None for a file."""

    ids = Bundle("ids")

    def __init__(self, url: str | None = None) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.place = Place(url or Path(self.directory.name) / "jobs.sqlite")
        if url is not None:
            empty(url)
        self.clock = Clock()
        self.jobs: dict[str, Job] = {}  # in the order of acceptance
        self.generated: dict[str, dict[int, StoredImage]] = {}
        self.accepted = 0

    @initialize()
    def open(self) -> None:
        self.store = self.place.open(self.clock, self.clock)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(
        target=ids,
        images=st.integers(1, 3),
        owner=st.sampled_from(OWNERS),
        key=st.sampled_from([None, "first", "second"]),
        fingerprint=st.sampled_from("xy"),
        durable=st.booleans(),
    )
    def add(self, images: int, owner: str | None, key: str | None, fingerprint: str, durable: bool) -> object:
        id = f"job_{999 - self.accepted}"  # so that sorted ids are not in the order of acceptance
        new = job(
            images,
            client="192.0.2.1",
            id=id,
            owner=owner,
            idempotency_key=key,
            fingerprint=fingerprint,
            durable=durable,
        )
        same = [j for j in self.jobs.values() if key and (j.owner, j.idempotency_key) == (owner, key)]
        if not same:
            added = self.store.add(new)
            assert added == replace(new, sequence=added.sequence)
            assert added.sequence > max((known.sequence for known in self.jobs.values()), default=0)
            self.accepted += 1
            self.jobs[new.id], self.generated[new.id] = added, {}
            return new.id
        if same[0].fingerprint == fingerprint:
            assert self.store.add(new) == same[0]
        else:
            with pytest.raises(IdempotencyKeyReused):
                self.store.add(new)
        return multiple()

    @rule(id=ids)
    def start(self, id: str) -> None:
        now = self.tick()
        old = self.jobs.get(id)
        queued = old is not None and old.state == "queued"
        assert self.store.start(id) == queued
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
        if id in self.jobs and index >= self.jobs[id].image_count:
            return
        new = image(index, bytes(size))
        assert self.store.add_image(id, new) == self.is_open(id)
        if self.is_open(id):
            self.generated[id].setdefault(index, new)

    @rule(id=ids)
    def finish(self, id: str) -> None:
        self.start(id)
        if self.is_open(id) and len(self.generated[id]) < self.jobs[id].image_count:
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
        while ended := [id for id in self.jobs if not self.is_open(id)]:
            if sum(map(self.bytes_of, ended)) <= max_bytes:
                break
            done = [id for id in ended if self.jobs[id].state == "done"]
            used = {owner: sum(self.bytes_of(id) for id in done if self.jobs[id].owner == owner) for owner in OWNERS}
            most = max(OWNERS, key=used.__getitem__)
            first = [id for id in ended if id not in done] or [id for id in done if self.jobs[id].owner == most]
            self.forget(min(first, key=lambda id: (self.jobs[id].finished, self.jobs[id].sequence)))
        assert self.store.prune(Retention(age, max_bytes)) == before - len(self.jobs)

    @rule()
    def recover(self) -> None:
        now = self.tick()
        for id in filter(self.is_open, list(self.jobs)):
            if self.jobs[id].durable:
                self.update(id, state=JobState.QUEUED)
            else:
                error = JobError("server_restarted", "")
                self.update(id, state=JobState.FAILED, finished=now, error=error, client="")
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
        for owner in OWNERS:
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
        return stored_size(self.jobs[id]) + sum(len(p.data) for p in self.generated[id].values())

    def update(self, id: str, **changes: object) -> None:
        self.jobs[id] = replace(self.jobs[id], **changes)

    def forget(self, id: str) -> None:
        del self.jobs[id], self.generated[id]

    def end(self, id: str, change: Callable[[str], bool], state: JobState, error: JobError | None = None) -> None:
        now = self.tick()
        assert change(id) == self.is_open(id)
        if self.is_open(id):
            self.update(id, state=state, finished=now, error=error, client="")

    def take_over_messages(self) -> None:
        """Take the messages of "server_restarted" from the store, since only the code is fixed."""
        for id, expected in self.jobs.items():
            if expected.error == JobError("server_restarted", ""):
                found = self.store.get(id)
                assert found.error.code == "server_restarted" and found.error.message
                self.update(id, error=found.error)


@pytest.mark.slow
def test_store_in_a_file_agrees_with_a_dictionary() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))


@pytest.mark.slow
def test_store_in_postgresql_agrees_with_a_dictionary(reused_url: str) -> None:
    few = settings(max_examples=15, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(lambda: StoreMachine(reused_url), settings=few)
