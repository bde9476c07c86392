"""One client with many expensive jobs does not stop the others. With real engines."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ENDED = re.compile(r"^zimage_jobs_ended_total\{.*\} (.+)$", re.MULTILINE)
FLOOD, SINGLES = "flood", [f"single-{number}" for number in range(9)]


@pytest.fixture
def http(engines: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "server.cli", "--engines", str(engines), "--port", "0", "--batching", "off"]
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


def ended(http: httpx.Client) -> int:
    """Return the number of tasks that have ended, of all clients."""
    return sum(int(float(count)) for count in ENDED.findall(http.get("/metrics").text))


def test_nine_clients_do_not_wait_for_the_long_prompts_of_a_tenth(http: httpx.Client) -> None:
    """The tenth has 800 guided images with prompts of 32,000 emoji in the queue."""
    long = {"prompt": "\U0001f3a8" * 32_000, "negative_prompt": "\U0001f600" * 32_000, "cfg_scale": 4.0}
    for seed in range(100):
        submit(http, FLOOD, **long, num_images=4, seed=seed)
    before = ended(http)
    singles = [submit(http, key, prompt="a red circle") for key in SINGLES]
    while not all(http.get(f"/v1/task/{single}").json()["status"] == "done" for single in singles):
        assert ended(http) - before <= len(SINGLES) + 2
        time.sleep(0.05)
    assert http.get("/metrics").text.count('zimage_worker_starts_total{device="cpu"} 1.0') == 1
