"""One client with many expensive jobs does not stop the others. With real engines."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

FLOOD, SINGLES = "flood", [f"single-{number}" for number in range(9)]


@pytest.fixture
def http(engines: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "server.cli", "--engines", str(engines), "--port", "0"]
    environment = os.environ | {"ZIMAGE_KEYS": " ".join([FLOOD, *SINGLES])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split("ready on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client
        finally:
            server.kill()


def submit(http: httpx.Client, key: str, **body: object) -> str:
    answer = http.post("/v1/generate", json={"width": 64, "height": 64} | body, headers={"x-api-key": key})
    assert answer.status_code == 200, answer.text
    return answer.json()["task_id"]


def done(http: httpx.Client, key: str) -> int:
    """Return the number of finished tasks of a client."""
    tasks = http.get("/v1/tasks", headers={"x-api-key": key}).json()["tasks"]
    return sum(task["status"] == "done" for task in tasks)


def test_nine_clients_do_not_wait_for_the_long_prompts_of_a_tenth(http: httpx.Client) -> None:
    """The tenth has 800 guided images with prompts of 32,000 emoji in the queue."""
    long = {"prompt": "\U0001f3a8" * 32_000, "negative_prompt": "\U0001f600" * 32_000, "cfg_scale": 4.0}
    for seed in range(100):
        submit(http, FLOOD, **long, num_images=4, seed=seed)
    for key in SINGLES:
        submit(http, key, prompt="a red circle")
    while not all(done(http, key) for key in SINGLES):
        assert done(http, FLOOD) <= 1
        time.sleep(0.05)
    assert http.get("/metrics").text.count("zimage_worker_starts_total 1.0") == 1
