"""`/metrics`, read by Prometheus' own parser."""

from collections.abc import Iterator

import httpx
import pytest
from fakes.loop import KILL_PROMPT, NAN_PROMPT, SWITCH, FakeLoop
from fakes.server import IMAGES, serving
from prometheus_client.parser import text_string_to_metric_families

from server.api.access import AccessPolicy
from server.jobs.admission.admission import Limits


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with serving(FakeLoop(0.01), Limits(queue=2)) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def samples(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """Return values by name and label values, in the order of the labels' names."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_counters_begin_at_0_so_that_the_first_refusal_is_a_change(http: httpx.Client) -> None:
    before = samples(http)
    refusals = ("queue_full", "deadline_unreachable", "out_of_memory", "worker_unavailable")
    assert all(before["zimage_jobs_refused_total", code] == 0 for code in (*refusals, "rate_limit_exceeded"))
    for api in ("openai", "tasks"):
        assert before["zimage_jobs_accepted_total", api] == before["zimage_jobs_ended_total", api, "", "done"] == 0
    http.post(IMAGES, json={"prompt": "a cat"})
    http.post(IMAGES, json={"prompt": NAN_PROMPT, "num_inference_steps": 1})
    http.post(IMAGES, json={"prompt": "a cat", "lora": "damaged"})
    http.post("/v1/generate", json={"prompt": "a cat", "timeout": 1e-6})
    tasks = [http.post("/v1/generate", json={"prompt": "a cat", "num_inference_steps": 100}).json() for _ in range(3)]
    for task in tasks[:2]:
        http.delete(f"/v1/task/{task['task_id']}")
    after = samples(http)
    assert {key for key in after.keys() - before.keys() if "device_memory" not in key[0]} == set()
    changed = {key for key in after if key[0] == "zimage_jobs_ended_total" and after[key] != before[key]}
    assert {key[2] for key in changed} >= {"non_finite_output", "lora_unavailable", ""}


def test_refusals_for_the_rate_are_counted() -> None:
    with serving(FakeLoop(), policy=AccessPolicy(rate="1/hour")) as url, httpx.Client(base_url=url) as http:
        statuses = [http.post(IMAGES, json={"prompt": "a cat"}).status_code for _ in range(3)]
        assert statuses == [200, 429, 429]
        assert samples(http)["zimage_jobs_refused_total", "rate_limit_exceeded"] == 2


def test_jobs_images_and_workers_are_counted(http: httpx.Client) -> None:
    for prompt in ("a cat", NAN_PROMPT):
        http.post(IMAGES, json={"prompt": prompt, "size": "128x64", "n": 2, "lora": "outlines"})
    tasks = [http.post("/v1/generate", json={"prompt": "a cat", "num_inference_steps": 100}).json() for _ in range(3)]
    found = samples(http)
    assert found["zimage_jobs_waiting",] + found["zimage_jobs_running",] == 2
    assert found["zimage_queue_estimated_seconds",] > 0.5
    assert found["zimage_jobs_refused_total", "queue_full"] == 1
    assert "error" in tasks[2]
    for task in tasks[:2]:
        http.delete(f"/v1/task/{task['task_id']}")
    http.post(IMAGES, json={"prompt": NAN_PROMPT, "num_inference_steps": 1})
    found = samples(http)
    assert found["zimage_lora_switches_total",] == 2
    assert found["zimage_lora_switch_seconds_total",] == 2 * SWITCH
    assert found["zimage_jobs_accepted_total", "openai"] == 3
    assert found["zimage_jobs_accepted_total", "tasks"] == 2
    assert found["zimage_jobs_ended_total", "openai", "", "done"] == 1
    assert found["zimage_jobs_ended_total", "openai", "non_finite_output", "failed"] == 2
    assert found["zimage_jobs_ended_total", "tasks", "", "cancelled"] == 2
    assert found["zimage_images_total",] == found["zimage_device_images_total", "cpu"] == 2
    assert found["zimage_pixels_total",] == 2 * 128 * 64
    assert found["zimage_stage_seconds_count", "encode"] == 2
    assert found["zimage_stage_seconds_sum", "passes"] == pytest.approx(2 * 8 * 0.01)
    assert found["zimage_forward_batch_size_count",] >= 24
    in_passes = sum(value for key, value in found.items() if key[0] == "zimage_forward_batch_seconds_total")
    assert in_passes == pytest.approx(found["zimage_forward_seconds_total", "cpu"])
    assert found["zimage_job_seconds_count", "openai"] == 3
    assert found["zimage_job_queue_seconds_count",] >= 2
    assert (found["zimage_worker_ready", "cpu"], found["zimage_worker_starts_total", "cpu"]) == (1, 1)
    assert found["process_resident_memory_bytes",] > 1e7
    assert found["zimage_worker_process_resident_memory_bytes", "cpu"] > 1e7
    assert found["zimage_device_memory_used_bytes", "cpu"] == 3 << 30
    assert found["zimage_device_memory_total_bytes", "cpu"] == 8 << 30
    assert KILL_PROMPT not in http.get("/metrics").text
