"""Random histories of a fleet: replicas, hosts that vanish and come back late, and the janitor."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fakes.databases import ClockedPostgres, empty
from fakes.jobs import ERROR, Clock, host, image, job
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.size import Size
from server.errors import IdempotencyKeyReused, QueueFull
from server.jobs.job import MAX_TOTAL_ATTEMPTS, Job
from server.jobs.storage.fleet.expiry import LEASE_SECONDS
from server.jobs.storage.fleet.fleet_store import FleetStore

HOSTS, LIMIT = ["host 0", "host 1"], 6
AFTER_LOSS = 400  # claims, heartbeats and runs of the janitor after which all jobs must have ended


@dataclass
class Belief:
    """A claimed job, as its host knows it."""

    job: Job
    is_started: bool = False
    images: set[int] = field(default_factory=set)


class FleetMachine(RuleBasedStateMachine):
    """A fleet whose hosts know only what the store has told them. `ends` counts the writes that ended each job."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.clock = url, Clock()

    @initialize()
    def open(self) -> None:
        empty(self.url)
        self.fleet = FleetStore(ClockedPostgres(self.url, self.clock))
        self.hosts: dict[str, dict[str, Belief]] = {name: {} for name in HOSTS}
        self.accepted: dict[str, Job] = {}
        self.ends: dict[str, int] = {}
        self.leases: dict[str, tuple[str, float]] = {}  # host and end of the last lease, by job
        self.stored: dict[str, dict[int, bytes]] = {}
        for name in HOSTS:
            self.fleet.register(host(name))

    # replicas

    @rule(
        client=st.sampled_from("ab"),
        images=st.integers(1, 3),
        key=st.sampled_from([None, "key"]),
        fingerprint=st.sampled_from("xy"),
        seconds=st.sampled_from([None, 30.0]),
        priority=st.sampled_from(["interactive", "batch"]),
    )
    def add(
        self, client: str, images: int, key: str | None, fingerprint: str, seconds: float | None, priority: str
    ) -> None:
        id = f"job_{len(self.accepted)}"  # not random, so that hypothesis can repeat a history
        own = {"id": id, "client": client, "owner": client, "priority": priority, "idempotency_key": key}
        deadline = None if seconds is None else 1.5 + seconds
        wanted = job(images, fingerprint=fingerprint, deadline=deadline, cost=float(images), **own)
        same = [old for old in self.accepted.values() if key and (old.owner, old.idempotency_key) == (client, key)]
        try:
            added = self.fleet.add(wanted, queue_limit=LIMIT)
        except QueueFull:
            assert not same and 4 * sum(not self.ends[id] for id in self.accepted) >= LIMIT
        except IdempotencyKeyReused:
            assert same[0].fingerprint != fingerprint
        else:
            assert added.id == (same[0].id if same else wanted.id)
            if not same:
                self.accepted[added.id], self.ends[added.id], self.stored[added.id] = added, 0, {}

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.count_end(id := data.draw(st.sampled_from(sorted(self.accepted))), self.fleet.cancel(id))

    # hosts

    @rule(name=st.sampled_from(HOSTS), count=st.sampled_from([1, 9]))
    def claim(self, name: str, count: int) -> None:
        for claimed in self.fleet.claim(host(name), (), count, lambda _: Size(64, 64)):
            id = claimed.job.id
            holder, end = self.leases.get(id, ("", 0.0))
            assert not self.ends[id] and (not holder or end < self.clock.now), "held by another host"
            assert {index: image.data for index, image in claimed.images.items()} == self.stored[id]
            self.hosts[name][id] = Belief(claimed.job, images=set(claimed.images))
            self.leases[id] = name, self.clock.now + LEASE_SECONDS

    @precondition(lambda self: any(self.hosts.values()))
    @rule(name=st.sampled_from(HOSTS), data=st.data())
    def generate(self, name: str, data: st.DataObject) -> None:
        """Start a job, or finish its next image, as far as the host knows; its last one ends it."""
        if not (known := self.hosts[name]):
            return
        id = data.draw(st.sampled_from(sorted(known)))
        belief, store = known[id], self.fleet.held_by(name)
        if not belief.is_started:
            belief.is_started = True
            assert store.start(id) <= self.holds(name, id)
            return
        missing = [index for index in range(belief.job.image_count) if index not in belief.images]
        if missing:
            data_of_image = f"{name} {missing[0]}".encode()
            is_stored = store.add_image(id, image(missing[0], data_of_image))
            assert is_stored == self.holds(name, id)
            belief.images.add(missing[0])
            if is_stored:
                self.stored[id].setdefault(missing[0], data_of_image)
        if len(belief.images) == belief.job.image_count:
            del known[id]
            self.count_end(id, store.finish(id), name)

    @precondition(lambda self: any(self.hosts.values()))
    @rule(name=st.sampled_from(HOSTS), data=st.data())
    def fail(self, name: str, data: st.DataObject) -> None:
        if known := self.hosts[name]:
            id = data.draw(st.sampled_from(sorted(known)))
            del known[id]
            self.count_end(id, self.fleet.held_by(name).fail(id, ERROR), name)

    @precondition(lambda self: any(self.hosts.values()))
    @rule(name=st.sampled_from(HOSTS), refund=st.booleans(), data=st.data())
    def release(self, name: str, refund: bool, data: st.DataObject) -> None:
        if known := self.hosts[name]:
            id = data.draw(st.sampled_from(sorted(known)))
            del known[id]
            assert self.fleet.release(id, name, refund) == self.holds(name, id)
            if self.holds(name, id):
                del self.leases[id]

    @rule(name=st.sampled_from(HOSTS))
    def heartbeat(self, name: str) -> None:
        known = self.hosts[name]
        answer = self.fleet.heartbeat(host(name), dict.fromkeys(known, 1))
        assert answer.ended == [id for id in known if not self.holds(name, id)]
        for id in answer.ended:
            del known[id]
        for id in known:
            self.leases[id] = name, self.clock.now + LEASE_SECONDS

    @precondition(lambda self: any(self.hosts.values()))
    @rule(name=st.sampled_from(HOSTS))
    def vanish(self, name: str) -> None:
        """Lose a host's memory, as kill -9 does. One that is only cut off keeps it, and goes on."""
        self.hosts[name].clear()

    # time and the janitor

    @rule(seconds=st.sampled_from([2, 4]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.expire()

    @rule(name=st.sampled_from(HOSTS))
    def cut_off(self, name: str) -> None:
        """Keep a host from the database for longer than its leases. It knows nothing of that, and goes on."""
        for _ in range(3):
            self.wait(4)
            for other in HOSTS:
                if other != name:
                    self.heartbeat(other)

    @rule()
    def lose_database(self) -> None:
        """Let so much time pass without a janitor that leases are extended."""
        self.clock.now += 20
        self.expire()

    def expire(self) -> None:
        expired = self.fleet.expire()
        for found in expired.ended:
            self.count_end(found.id, True)
        for found in expired.requeued:
            assert self.leases.pop(found.id)[1] < self.clock.now and not self.ends[found.id]
        for id, (name, end) in list(self.leases.items()):  # after a pause, hosts get time
            row = self.fleet.get(id)
            if row.lease is not None and row.lease > end:
                self.leases[id] = name, row.lease

    # what must hold

    def holds(self, name: str, id: str) -> bool:
        return not self.ends[id] and self.leases.get(id, ("",))[0] == name

    def count_end(self, id: str, is_ended: bool, name: str | None = None) -> None:
        assert is_ended == (not self.ends[id] and (name is None or self.holds(name, id)))
        self.ends[id] += is_ended

    @invariant()
    def accepted_jobs_are_there_and_end_once(self) -> None:
        found = {found.id: found for found in self.fleet.find(list(self.ends)).jobs}
        for id, count in self.ends.items():
            assert count == (1 if found[id].state.is_final else 0)
            assert found[id].attempts <= MAX_TOTAL_ATTEMPTS
            if found[id].state == "done":
                assert len(self.stored[id]) == found[id].image_count
            if id in self.leases and not count:
                assert found[id].worker == self.leases[id][0]

    def teardown(self) -> None:
        """Let hosts work in order, whatever has happened: every job ends in bounded time."""
        for step in self.until_all_have_ended():
            assert step < AFTER_LOSS, [self.fleet.get(id) for id, count in self.ends.items() if not count]
        for id, images in self.stored.items():
            there = {image.index: image.data for image in self.fleet.images(id)}
            assert {index: there[index] for index in images} == images
        self.fleet.close()

    def until_all_have_ended(self) -> Iterator[int]:
        step = 0
        while not all(self.fleet.get(id).state.is_final for id in self.accepted):
            step += 1
            yield step
            self.clock.now += 3
            self.fleet.expire()
            self.fleet.register(host("rescue"))
            store = self.fleet.held_by("rescue")
            for claimed in self.fleet.claim(host("rescue"), (), 9, lambda _: Size(64, 64)):
                store.start(claimed.job.id)
                for index in range(claimed.job.image_count):
                    store.add_image(claimed.job.id, image(index))
                assert store.finish(claimed.job.id)


@pytest.mark.slow
def test_fleet_ends_every_job_once_whatever_happens(reused_url: str) -> None:
    some = settings(max_examples=12, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(lambda: FleetMachine(reused_url), settings=some)
