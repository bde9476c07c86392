"""Tests of zimage-admin over PostgreSQL and Redis: what it shows and does, and what it refuses."""

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes.hosts import device, worker
from fakes.jobs import job

from engine.request import ImageRequest
from engine.size import Size
from server.fleet import admin, operations
from server.fleet.messaging.event_bus import EventBus
from server.fleet.messaging.events import CancelJob, DrainWorker, Event
from server.jobs.job import JobError, JobState
from server.jobs.storage.fleet.fleet_store import FleetStore

TIMEOUT = 60.0  # seconds


@pytest.fixture
def store(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetStore]:
    """The store of a fleet, which zimage-admin finds in its environment."""
    monkeypatch.setenv("ZIMAGE_DATABASE", postgres_url)
    for name in ("ZIMAGE_BROKER", "ZIMAGE_FLEET"):
        monkeypatch.delenv(name, raising=False)
    store = FleetStore(postgres_url)
    yield store
    store.database.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> list[dict[str, Any]]:
        admin.main(["--json", *arguments])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def failed(store: FleetStore, code: str = "worker_lost") -> str:
    id = store.add(job()).id
    assert store.fail(id, JobError(code, "it died twice"))
    return id


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        admin.main(list(arguments))
    return str(end.value.code)


def test_workers_are_shown_in_a_table_and_as_json(store: FleetStore, run: Any, capsys: Any) -> None:
    store.register(worker("a-1", devices=(device(jobs=2), device("1", is_ready=False, jobs=1))))
    store.register(replace(worker("b-1", host="gpu\x1b[2J2", devices=()), loras=("outlines",)))
    found = run("workers")
    assert [(host["id"], host["state"], host["jobs"]) for host in found] == [
        ("a-1", "ready", 3),
        ("b-1", "starting", 0),
    ]
    assert found[0]["devices"][1]["is_ready"] is False and found[1]["loras"] == ["outlines"]
    admin.main(["workers"])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["ID", "HOST", "STATE"]
    assert "1 of 2 ready" in first and "gpu\\x1b[2J2" in second


def test_queue_counts_jobs(store: FleetStore, run: Any) -> None:
    store.add(job(model="nano", cost=7.0))
    store.add(job(model="nano", priority="batch"))
    found = {length["priority"]: length for length in run("queue")}
    assert found["interactive"]["waiting"] == found["batch"]["waiting"] == 1
    assert found["interactive"]["cost"] == 7.0


def test_queue_shows_how_many_hosts_can_take_each_part(store: FleetStore, run: Any, capsys: Any) -> None:
    store.register(replace(worker(), loras=("ink",)))
    for lora in ("ink", "gone"):
        store.add(job(model="nano", request=ImageRequest("a cat", lora=lora)))
    assert {part["lora"]: part["hosts"] for part in run("queue")} == {"ink": 1, "gone": 0}
    admin.main(["queue"])
    head, gone, _ = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "HOSTS" and gone.split()[3:5] == ["gone", "no"] and gone.split()[-1] == "0"


def test_cancel_ends_unfinished_jobs_only_and_tells_their_hosts(store: FleetStore, run: Any, redis_url: str) -> None:
    heard: queue.Queue[Event] = queue.Queue()
    bus = EventBus(redis_url, "zimage", "control", heard.put)
    bus.start()
    try:
        assert bus.wait_until_listening(TIMEOUT)
        id = store.add(job()).id
        assert run("--broker", redis_url, "cancel", id) == [{"id": id, "state": "cancelled"}]
        assert heard.get(timeout=TIMEOUT) == CancelJob(id)
    finally:
        bus.close()
    assert (found := store.get(id)) is not None and found.state is JobState.CANCELLED
    assert refusal("cancel", id) == f"zimage-admin: {id}: it is cancelled; only unfinished jobs can be cancelled"


def test_jobs_lists_unfinished_jobs_and_dead_ones(store: FleetStore, run: Any, capsys: Any) -> None:
    waiting, dead = store.add(job()).id, failed(store)
    failed(store, "non_finite_output")
    assert [found["id"] for found in run("jobs")] == [waiting]
    assert [found["id"] for found in run("jobs", "--dead")] == [dead]
    admin.main(["jobs", "--dead"])
    assert "worker_lost: it died twice" in capsys.readouterr().out
    admin.main(["jobs"])
    assert "a red circle" not in capsys.readouterr().out, "prompts are the clients' own"


@pytest.mark.parametrize("name", ["gpu7-abc", "gpu7-a", "machine7"])
def test_drain_finds_a_host_by_id_its_beginning_or_its_machine(store: FleetStore, run: Any, name: str) -> None:
    store.register(worker("gpu7-abc", host="machine7"))
    store.register(worker("gpu8-abc", host="machine8"))
    assert run("drain", name) == [{"id": "gpu7-abc", "host": "machine7", "jobs": 0}]
    assert [host.is_draining for host in store.workers()] == [True, False]


def test_drain_of_an_unknown_or_ambiguous_host_drains_none(store: FleetStore) -> None:
    assert refusal("drain", "gpu") == "zimage-admin: no worker host is called 'gpu'"
    for name in ("gpu7-abc", "gpu7-abd"):
        store.register(worker(name))
    assert refusal("drain", "gpu7") == (
        "zimage-admin: 2 worker hosts are called 'gpu7'; give the id of one, such as gpu7-abc, gpu7-abd"
    )
    assert not any(host.is_draining for host in store.workers())


def test_drain_waits_until_the_jobs_have_ended(store: FleetStore, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.register(worker(devices=(device(jobs=2),)))
    looks = [2, 1, 0]

    def finish_one(_: float) -> None:
        store.heartbeat(worker(devices=(device(jobs=looks.pop(0)),)), {})

    monkeypatch.setattr(operations.time, "sleep", finish_one)
    assert run("drain", "host-1", "--wait") == [{"id": "host-1", "host": "gpu1", "jobs": 0}], "after the wait"
    assert looks == []
    store.heartbeat(worker(devices=(device(jobs=5),)), {})
    refused = refusal("drain", "host-1", "--wait", "--timeout", "0")
    assert refused == "zimage-admin: host-1 still has 5 jobs after 0 s; it goes on draining"


def test_drain_waits_for_a_job_that_was_claimed_after_the_last_heartbeat(
    store: FleetStore, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = store.add(job(model="nano"))
    store.register(worker())
    store.claim(worker(), [], 1, lambda _: Size(64, 64))
    waits: list[float] = []

    def end(seconds: float) -> None:
        waits.append(seconds)
        store.cancel(claimed.id)

    monkeypatch.setattr(operations.time, "sleep", end)
    assert run("drain", "host-1") == [{"id": "host-1", "host": "gpu1", "jobs": 1}]
    assert run("drain", "host-1", "--wait") == [{"id": "host-1", "host": "gpu1", "jobs": 0}]
    assert len(waits) == 1


def test_drain_waits_no_longer_for_a_host_that_is_gone_or_has_left(
    store: FleetStore, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register(worker(devices=(device(jobs=2),)))
    monkeypatch.setattr(operations, "GONE_SECONDS", -1.0)
    assert run("drain", "host-1", "--wait") == [{"id": "host-1", "host": "gpu1", "jobs": 2}]

    def leave(_: float) -> None:
        store.forget("host-1")

    monkeypatch.setattr(operations, "GONE_SECONDS", 60.0)
    monkeypatch.setattr(operations.time, "sleep", leave)
    assert run("drain", "host-1", "--wait") == [{"id": "host-1", "host": "gpu1", "jobs": 0}], "it left in good order"


def test_drain_tells_the_host_through_the_broker(
    store: FleetStore, run: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIMAGE_BROKER", redis_url)
    heard: list[Event] = []
    has_heard = threading.Event()
    bus = EventBus(redis_url, "tests", "control", lambda event: (heard.append(event), has_heard.set()))
    bus.start()
    try:
        assert bus.wait_until_listening(TIMEOUT)
        store.register(worker())
        run("--fleet", "tests", "drain", "host-1")
        assert has_heard.wait(TIMEOUT)
    finally:
        bus.close()
    assert heard == [DrainWorker("host-1")]


def test_retry_queues_a_dead_job_with_a_ticket(store: FleetStore, run: Any, redis_url: str) -> None:
    import redis

    id = failed(store)
    (retried,) = run("retry", id)
    assert retried["state"] == "queued" and retried["ticket"] is False, "no broker was named"
    assert store.fail(id, JobError("worker_lost", "it died again"))
    (retried,) = run("--broker", redis_url, "retry", id)
    assert retried["state"] == "queued" and retried["ticket"] is True
    with redis.Redis.from_url(redis_url) as client:
        (ticket,) = client.lrange("zimage.zimage.any.interactive", 0, -1)
    assert id in ticket.decode()
    assert (found := store.get(id)) is not None and found.state is JobState.QUEUED


def test_retry_and_drop_take_failed_jobs_only(store: FleetStore, run: Any) -> None:
    waiting, dead, other = store.add(job()).id, failed(store), failed(store, "device_error")
    assert refusal("retry", waiting) == (
        f"zimage-admin: {waiting}: it is queued; only failed jobs can be retried or dropped"
    )
    assert "there is no such job" in refusal("drop", "job_unknown")
    assert run("drop", dead, other) == [{"id": dead, "state": "deleted"}, {"id": other, "state": "deleted"}]
    assert store.get(dead) is None and store.get(waiting) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("retry",),
        ("retry", ""),
        ("retry", "job'; DROP TABLE jobs; --"),
        ("retry", "job\udcff"),
        ("drop", "x" * 201),
        ("drain", "a b"),
        ("drain", "a", "--timeout", "nan"),
        ("drain", "a", "--timeout", "-1"),
        ("--database", "jobs.db", "workers"),
        ("--database", "", "workers"),
    ],
    ids=ascii,
)
@pytest.mark.usefixtures("store")
def test_wrong_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    assert refusal(*arguments) == "2"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@127.0.0.1:1/x",
        "postgresql://u:hunter2@[::1/x",
        "postgresql://u:hunter2@127.0.0.1:hunter2/x",
        "postgresql://u:hunter2@127.0.0.1:1/x?hunter2=1",
        "postgresql://u:p@hunter2@127.0.0.1:1/x",
        "postgresql://u:123/hunter2@127.0.0.1:1/x",
        "postgresql://u:hunter2/x@127.0.0.1:1/x",
        "postgresql://u:hunter2%zz@127.0.0.1:1/x",
        "postgresql://u:hunter2@127.0.0.1:1/x?sslmode=verify-full&sslrootcert=/nowhere",
    ],
)
def test_database_that_cannot_be_used_is_named_without_its_password(url: str) -> None:
    said = refusal("--database", url, "workers")
    assert said.startswith("zimage-admin: ") and "\n" not in said.strip()
    assert "hunter2" not in said


@pytest.mark.usefixtures("store")
def test_broker_that_cannot_be_used_is_refused_without_its_password() -> None:
    said = refusal("--broker", "redis://:hunter2/x@127.0.0.1", "workers")
    assert "the broker's URL cannot be read" in said and "hunter2" not in said


def test_drain_needs_no_broker(store: FleetStore, run: Any) -> None:
    store.register(worker())
    assert run("--broker", "redis://127.0.0.1:1/0", "drain", "host-1") == [{"id": "host-1", "host": "gpu1", "jobs": 0}]
    assert [host.is_draining for host in store.workers()] == [True]


def test_claimed_job_names_its_host(store: FleetStore, run: Any) -> None:
    store.add(job(model="nano"))
    store.register(worker())
    store.claim(worker(), [], 1, lambda _: Size(64, 64))
    assert [found["worker"] for found in run("jobs")] == ["host-1"]
