"""Servers that are killed or stopped with unfinished jobs, as real processes."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fakes.faults import ask, colour, server, wait_until_accepted, wait_until_gone, workers
from fakes.server import IMAGES
from websockets.sync.client import connect

from server.jobs.storage.store import JobStore


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.5])  # seconds: during the first image, and the second
def test_jobs_of_a_killed_server_are_finished_by_the_next(tmp_path: Path, delay: float) -> None:
    database = str(tmp_path / "jobs.db")
    with server(database) as (url, child), ThreadPoolExecutor() as pool:
        keys = [f"key-{seed}" for seed in range(4)]
        answers = [pool.submit(ask, url, "a cat", seed, **{"Idempotency-Key": key}) for seed, key in enumerate(keys)]
        wait_until_accepted(tmp_path / "jobs.db", 4)
        time.sleep(delay)
        orphans = workers(child)
        child.kill()
        errors = [answer.exception() for answer in answers]
    assert any(isinstance(error, httpx.TransportError) for error in errors) or delay
    for orphan in orphans:
        wait_until_gone(orphan)
    with server(database) as (url, child):
        for seed, key in enumerate(keys):
            assert colour(ask(url, "a cat", seed, **{"Idempotency-Key": key})) == [seed, 8, 5]
        child.terminate()
        assert child.wait(20) == 0
    store = JobStore(tmp_path / "jobs.db")
    jobs = store.history(10, None, None).jobs
    assert sorted(job.idempotency_key or "" for job in jobs) == keys  # none lost, none twice
    assert all(job.state == "done" and job.attempts <= 2 for job in jobs)
    store.close()


@pytest.mark.slow
def test_sigterm_lets_a_stream_finish() -> None:
    with server() as (url, child), httpx.Client(base_url=url, timeout=20) as http:
        body = {"prompt": "a cat", "stream": True, "num_inference_steps": 50}
        with http.stream("POST", IMAGES, json=body) as response:
            child.terminate()
            assert "image_generation.completed" in response.read().decode()
        assert child.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_orderly_stop_costs_the_running_task_no_attempt(tmp_path: Path, kind: signal.Signals) -> None:
    database = tmp_path / "jobs.db"
    with server(str(database)) as (url, child):
        body = {"prompt": "a cat", "num_inference_steps": 100}
        task = httpx.post(f"{url}/v1/generate", json=body).json()["task_id"]
        while httpx.get(f"{url}/v1/task/{task}").json()["progress"] < 2:
            time.sleep(0.02)
        child.send_signal(kind)
        assert child.wait(20) == 0
    store = JobStore(database)
    stored = store.get(task)
    assert stored is not None and (stored.state, stored.attempts) == ("queued", 0)
    store.close()


@pytest.mark.slow
def test_disconnected_websocket_does_not_delay_the_shutdown() -> None:
    with server() as (url, child):
        body = {"prompt": "a cat", "num_inference_steps": 100, "num_images": 4}
        _, waiting = (httpx.post(f"{url}/v1/generate", json=body).json()["task_id"] for _ in range(2))
        with connect(f"{url.replace('http', 'ws')}/v1/task/{waiting}/ws") as socket:
            socket.send("anything")
            assert json.loads(socket.recv())["queue_position"] == 1
        child.terminate()
        assert child.wait(10) == 0  # of its grace period of 20 s


@pytest.mark.slow
def test_sigterm_under_load_finishes_all_accepted_images(tmp_path: Path) -> None:
    database = tmp_path / "jobs.db"
    with server(str(database)) as (url, child), ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, url, "a cat", seed) for seed in range(10)]
        wait_until_accepted(database, 10)
        child.terminate()
        found = [answer.result() for answer in answers]
        assert child.wait(20) == 0
    assert [colour(response) for response in found] == [[seed, 8, 5] for seed in range(10)]
