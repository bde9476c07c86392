"""Several API replicas of one fleet: each answers for every job, whichever of them accepted it."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.fleet import hosting, new_options, replica
from fakes.jobs_mode import FleetServices
from fakes.loop import MANIFEST, FakeLoop
from fakes.nginx import behind_nginx, needs_nginx
from fakes.replica import replica_process
from fakes.server import IMAGES, running
from fakes.services import PostgreSql, Redis

from server.api.access import AccessPolicy
from server.app import AppOptions
from server.fleet.fleet_options import FleetOptions
from server.jobs.admission.admission import Limits

SLOW = {"prompt": "a cat", "num_images": 3, "num_inference_steps": 50}  # half a second an image


@pytest.fixture(scope="module")
def services(postgres: PostgreSql, redis: Redis) -> FleetServices:
    return FleetServices(redis.url, postgres.fresh_url)


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    return FakeLoop(seconds_per_step=0.01)


@pytest.fixture(scope="module")
def fleet(services: FleetServices, fake: FakeLoop) -> Iterator[FleetOptions]:
    """A fleet with one host."""
    options = new_options(services)
    with hosting(fake, options, MANIFEST):
        yield options


@pytest.fixture(scope="module")
def two(fleet: FleetOptions) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of two replicas, which allow 30 requests for images in an hour."""
    options = AppOptions(AccessPolicy(("key", "limited"), rate="30/hour"))
    with ExitStack() as stack:
        urls = [stack.enter_context(running(replica(fleet, MANIFEST), options)) for _ in range(2)]
        headers = {"x-api-key": "key"}
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=20, headers=headers)) for url in urls]
        yield clients[0], clients[1]


def submit(client: httpx.Client, **body: Any) -> str:
    answer = client.post("/v1/generate", json={"prompt": "a cat"} | body)
    assert answer.status_code == 200, answer.text
    task_id: str = answer.json()["task_id"]
    return task_id


def wait(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def ended(client: httpx.Client, task: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        answer: dict[str, Any] = client.get(f"/v1/task/{task}").json()
        return answer if answer["status"] not in ("pending", "running") else None

    return wait(found)


def events(url: str | httpx.URL, task: str, last: str | None = None) -> Iterator[dict[str, Any]]:
    headers = {} if last is None else {"last-event-id": last}
    with httpx.stream("GET", f"{url}/v1/task/{task}/events", headers=headers, timeout=20) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_task_of_one_replica_is_shown_followed_and_deleted_by_another(two: tuple[httpx.Client, httpx.Client]) -> None:
    first, second = two
    task = submit(first, num_inference_steps=30, previews=1)
    kinds = [event["type"] for event in events(str(second.base_url).rstrip("/"), task)]
    assert kinds[0] == "progress" and "preview" in kinds and kinds[-2:] == ["image", "end"]
    shown = second.get(f"/v1/task/{task}").json()
    path = httpx.URL(shown["result"]["paths"][0]).path
    assert second.get(path).content == first.get(path).content != b""
    listed = [each.get("/v1/tasks").json()["tasks"][0]["task_id"] for each in two]
    assert listed == [task, task]
    assert second.delete(f"/v1/task/{task}").status_code == 200
    assert first.get(f"/v1/task/{task}").status_code == 404


def test_cancellation_by_one_replica_answers_the_client_that_waits_at_another(
    two: tuple[httpx.Client, httpx.Client], fake: FakeLoop
) -> None:
    first, second = two
    with ThreadPoolExecutor(1) as threads:
        fake.pending.clear()
        waiting = threads.submit(first.post, IMAGES, json={"prompt": "cancelled here", "num_inference_steps": 100})
        assert fake.pending.wait(10)
        task = wait(lambda: [t for t in second.get("/v1/tasks").json()["tasks"] if t["prompt"] == "cancelled here"])[0]
        assert second.delete(f"/v1/task/{task['task_id']}").json()["status"] == "cancelled"
        assert waiting.result(10).status_code == 409
    done = len(fake.log)
    submit(first, num_inference_steps=1)
    wait(lambda: len(fake.log) > done)
    assert sum(prompt == "cancelled here" for prompt, _ in fake.log) < 90


def test_one_idempotency_key_makes_one_job_on_all_replicas(
    two: tuple[httpx.Client, httpx.Client], fake: FakeLoop
) -> None:
    body, headers = {"prompt": "once", "num_inference_steps": 2}, {"idempotency-key": "once"}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: two[n % 2].post(IMAGES, json=body, headers=headers), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-job-id"] for answer in answers}) == 1
    assert sum(prompt == "once" for prompt, _ in fake.log) == 2  # steps
    other = two[1].post(IMAGES, json=body | {"prompt": "twice"}, headers=headers)
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_replicas_count_the_rate_of_a_client_together(two: tuple[httpx.Client, httpx.Client]) -> None:
    headers, body = {"x-api-key": "limited"}, {"prompt": "a cat", "num_inference_steps": 1}
    codes = [two[n % 2].post("/v1/generate", json=body, headers=headers).status_code for n in range(34)]
    assert codes.count(200) == 30 and codes[-4:] == [429] * 4


def test_bound_of_the_queue_holds_over_replicas(services: FleetServices) -> None:
    fleet, app = new_options(services), AppOptions(AccessPolicy())
    with ExitStack() as stack:
        jobs = [replica(fleet, MANIFEST, Limits(queue=8)) for _ in range(2)]
        urls = [stack.enter_context(running(each, app)) for each in jobs]
        threads = stack.enter_context(ThreadPoolExecutor(8))

        def accepted(number: int) -> int:
            return httpx.post(urls[number % 2] + "/v1/generate", json={"prompt": "a cat"}, timeout=20).status_code

        codes = list(threads.map(accepted, range(24)))
    assert codes.count(200) == 6 and codes.count(429) == 18  # of one address; two places are for others


def test_health_lists_hosts_and_devices_and_metrics_tell_of_the_fleet(two: tuple[httpx.Client, httpx.Client]) -> None:
    def known() -> Any:
        report = two[1].get("/health").json()
        return report if report["workers"] and report["devices"][0]["is_ready"] else None

    report = wait(known)
    assert report["status"] == "ok" and report["workers"][0]["plan_id"] == MANIFEST.plan_id
    assert report["devices"][0]["host"] == report["workers"][0]["host"] == "test"
    text = two[0].get("/metrics").text
    assert 'zimage_fleet_workers{state="ready"} 1.0' in text
    assert "zimage_database_up 1.0" in text and "zimage_tickets_failed_total 0.0" in text


def test_jobs_are_accepted_before_there_is_a_host_and_wait_for_it(services: FleetServices) -> None:
    options = new_options(services)
    app = AppOptions(AccessPolicy())
    with running(replica(options, MANIFEST), app) as url, httpx.Client(base_url=url, timeout=20) as client:
        assert client.get("/ready").status_code == 200
        task = submit(client, lora="outlines")
        assert client.get(f"/v1/task/{task}").json()["status"] == "pending"
        with hosting(FakeLoop(), options, MANIFEST):
            assert ended(client, task)["status"] == "done"


def test_plans_of_any_host_may_be_named(services: FleetServices) -> None:
    options, other = new_options(services), replace(MANIFEST, plan_id="other plans")
    app = AppOptions(AccessPolicy())
    with (
        hosting(FakeLoop(), options, other),
        running(replica(options, MANIFEST), app) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        mine, others = submit(client, plan_id=MANIFEST.plan_id), submit(client, plan_id="other plans")
        assert ended(client, others)["status"] == "done"
        assert client.get(f"/v1/task/{mine}").json()["status"] == "pending"
        refused = client.post("/v1/generate", json={"prompt": "a cat", "plan_id": "unknown"})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "plan_id"


@needs_nginx
def test_events_go_on_at_the_other_replica_when_one_is_killed(fleet: FleetOptions, tmp_path: Path) -> None:
    """Through nginx, which the client asks for the same address again."""
    with (
        replica_process(fleet) as (first, killed),
        replica_process(fleet) as (second, _),
        behind_nginx([first, second], tmp_path) as url,
    ):
        with httpx.Client(base_url=first) as client:
            task = submit(client, **SLOW)
        images, last = [], None
        with pytest.raises(httpx.TransportError):
            for event in events(first, task):
                last = event["id"]
                if event["type"] == "image":
                    images.append(event["index"])
                    killed.send_signal(signal.SIGKILL)
        assert images
        rest = list(events(url, task, last))
        images += [event["index"] for event in rest if event["type"] == "image"]
        assert images == [0, 1, 2] and rest[-1]["task"]["status"] == "done"


def test_job_whose_replica_is_killed_is_finished_and_kept(fleet: FleetOptions) -> None:
    with replica_process(fleet) as (first, killed), replica_process(fleet) as (second, _):
        body = {"prompt": "of a killed replica", "num_inference_steps": 30}
        with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=second, timeout=20) as client:
            waiting = threads.submit(httpx.post, first + IMAGES, json=body, timeout=20)
            found = wait(lambda: [t for t in client.get("/v1/tasks").json()["tasks"] if t["prompt"] == body["prompt"]])
            killed.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                waiting.result(10)
            assert ended(client, found[0]["task_id"])["status"] == "done"


def test_replica_that_is_stopped_answers_its_clients_first(fleet: FleetOptions) -> None:
    with replica_process(fleet) as (url, stopped), ThreadPoolExecutor(4) as threads:
        body = {"prompt": "a cat", "num_inference_steps": 20}
        waiting = [threads.submit(httpx.post, url + IMAGES, json=body, timeout=20) for _ in range(4)]
        wait(lambda: 'zimage_jobs_accepted_total{api="openai"} 4.0' in httpx.get(f"{url}/metrics").text)
        stopped.terminate()
        wait(lambda: httpx.get(f"{url}/ready").status_code == 503, 5)
        assert [each.result(20).status_code for each in waiting] == [200] * 4
        assert stopped.wait(10) == 0


def test_disconnected_client_of_a_replica_cancels_its_job(fleet: FleetOptions, fake: FakeLoop) -> None:
    jobs = replica(fleet, MANIFEST)
    with running(jobs, AppOptions(AccessPolicy(shared_history=True))) as url, httpx.Client(base_url=url) as client:
        fake.pending.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + IMAGES, json={"prompt": "left alone", "num_inference_steps": 100}, timeout=0.5)
        task = next(t for t in client.get("/v1/tasks").json()["tasks"] if t["prompt"] == "left alone")
        assert ended(client, task["task_id"])["status"] == "cancelled"
