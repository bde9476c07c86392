"""Servers of several devices, with workers in processes: kills, hangs, devices that never start, and real images."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from fakes.device_server import BROKEN, DEVICE_SERVER
from fakes.faults import ask, colour, running, wait_for, workers
from fakes.loop import HANG_PROMPT, KILL_PROMPT
from fakes.processes import process
from fakes.server import IMAGES
from fakes.waiting import wait_until

CLIENTS = 20


@contextmanager
def server(*devices: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a server of some devices with fake workers; yield its URL and its process."""
    with running(sys.executable, *DEVICE_SERVER, "0.02", *devices) as found:
        yield found


def every_device_made_more(url: str, before: dict[str, float]) -> bool:
    """Return True if each device has generated images since `before`, by device."""
    return all(made > before[name] for name, made in by_device(url, "zimage_device_images_total").items())


def by_device(url: str, name: str) -> dict[str, float]:
    """Return the values of a metric by device."""
    found = re.findall(rf'^{name}{{device="([^"]+)"}} (\S+)$', httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return {device: float(value) for device, value in found}


@pytest.mark.slow
def test_kill_9_of_one_of_two_workers_under_load_loses_no_image() -> None:
    with server("cuda:0", "cuda:1") as (url, child), ThreadPoolExecutor(CLIENTS) as pool:
        for killed in range(2):
            wait_until_ready(url, 2)
            made = by_device(url, "zimage_device_images_total")
            pending = [pool.submit(ask, url, "a cat", seed) for seed in range(2 * CLIENTS)]
            wait_until(partial(every_device_made_more, url, made))
            os.kill(max(workers(child)), signal.SIGKILL)
            assert httpx.get(f"{url}/ready").status_code == 200, "the other worker goes on"
            assert [colour(each.result()) for each in pending] == [[seed, 8, 5] for seed in range(2 * CLIENTS)]
            made = by_device(url, "zimage_device_images_total")
            assert sum(made.values()) == (killed + 1) * 2 * CLIENTS
        wait_until_ready(url, 2)
        assert sum(by_device(url, "zimage_worker_starts_total").values()) == 4


@pytest.mark.slow
def test_device_that_never_starts_is_named_and_the_other_serves() -> None:
    with server(BROKEN, "cuda:1") as (url, _), ThreadPoolExecutor(CLIENTS) as pool:
        wait_for(url, "/ready", 200)
        found = pool.map(lambda seed: colour(ask(url, "a cat", seed)), range(CLIENTS))
        assert list(found) == [[seed, 8, 5] for seed in range(CLIENTS)]
        assert by_device(url, "zimage_worker_ready") == {BROKEN: 0, "cuda:1": 1}
        assert by_device(url, "zimage_worker_starts_total")[BROKEN] > 1, "it is tried again"
        assert httpx.get(f"{url}/health").status_code == 200


def test_server_whose_devices_all_fail_to_start_ends_with_each_reason() -> None:
    with process(*DEVICE_SERVER, "0.02", BROKEN, f"{BROKEN} too") as child:
        assert child.wait(30) == 1
        assert f"WorkerStartFailed: {BROKEN}, {BROKEN} too: it ended with status 3" in child.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [KILL_PROMPT, HANG_PROMPT])
def test_job_that_ends_two_workers_fails_alone_while_others_are_generated(prompt: str) -> None:
    with server("cuda:0", "cuda:1", "cuda:2") as (url, _), ThreadPoolExecutor(CLIENTS) as pool:
        wait_until_ready(url, 3)
        poison = pool.submit(ask, url, prompt)
        others = [pool.submit(ask, url, "a cat", seed) for seed in range(2 * CLIENTS)]
        assert [colour(other.result()) for other in others] == [[seed, 8, 5] for seed in range(2 * CLIENTS)]
        assert poison.result().json()["error"]["code"] == "worker_lost"
        wait_until_ready(url, 3)
        assert sum(by_device(url, "zimage_worker_starts_total").values()) == 5


def wait_until_ready(url: str, devices: int) -> None:
    deadline = time.monotonic() + 20
    while sum(by_device(url, "zimage_worker_ready").values()) < devices:
        assert time.monotonic() < deadline, "a worker is not ready"
        time.sleep(0.02)


@pytest.mark.slow
def test_images_of_two_cpu_workers_are_those_of_one(plan_directory: Path) -> None:
    def images(devices: str) -> dict[int, str]:
        arguments = ["--engines", str(plan_directory), "--devices", devices, "--threads", "1", "--port", "0"]
        arguments += ["--batching", "off"]
        with (
            running(sys.executable, "-m", "server.cli", *arguments) as (url, _),
            ThreadPoolExecutor(4) as pool,
        ):
            body = {"prompt": "a red circle", "size": "128x128", "num_inference_steps": 2, "response_format": "url"}
            wait_until_ready(url, int(devices[-1]))

            def generate(seed: int) -> tuple[int, str]:
                answer = httpx.post(url + IMAGES, json=body | {"seed": seed}, timeout=60).json()
                return seed, hashlib.sha256(httpx.get(answer["data"][0]["url"]).content).hexdigest()

            found = dict(pool.map(generate, range(8)))
            assert min(by_device(url, "zimage_device_images_total").values()) > 0, "a worker generated nothing"
            return found

    alone = images("cpu:1")
    assert len(set(alone.values())) == 8
    assert images("cpu:2") == alone
