"""What breaks, and that whoever was accepted is answered: real processes, killed and stopped at every moment."""

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from fakes.loop import HANG_PROMPT, KILL_PROMPT, NAN_PROMPT, FakeLoop
from fakes.processes import FAKE_SERVER, PYTHONPATH, ROOT
from fakes.server import IMAGES, decoded, serving
from websockets.sync.client import connect

from server.jobs.store import JobStore

STEP = 0.05  # seconds; an image has eight


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of fake workers: its URL and its process."""
    command = [sys.executable, *FAKE_SERVER, str(STEP), "20", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().split("ready on ")[1].split()[0], child
        finally:
            child.kill()


def workers(child: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def ask(url: str, prompt: str, seed: int = 1, **headers: str) -> httpx.Response:
    return httpx.post(url + IMAGES, json={"prompt": prompt, "seed": seed}, headers=headers, timeout=30)


def colour(response: httpx.Response) -> list[int]:
    """What the fake generates: seed, steps, length of the prompt."""
    assert response.status_code == 200, response.text
    return decoded(base64.b64decode(response.json()["data"][0]["b64_json"]))[0, 0].tolist()


def wait_for(url: str, path: str, status: int) -> float:
    """Seconds until a probe answers so."""
    started = time.monotonic()
    while True:
        with suppress(httpx.ConnectError):  # it does not listen yet
            if httpx.get(url + path, timeout=5).status_code == status:
                break
        assert time.monotonic() - started < 20, f"{path} never answered {status}"
        time.sleep(0.01)
    return time.monotonic() - started


LOADING = """
import socket, sys, threading, time
from server.worker.process import _exit_with_server
threading.Thread(target=_exit_with_server, args=[socket.socket(fileno=int(sys.argv[1]))], daemon=True).start()
time.sleep(60)
"""
SERVING = """
import sys
from fakes.loop import MANIFEST
from server.serving import Serving, serve
from server.http.sockets import listen
sock = listen("127.0.0.1", 0)
print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
serve(sock, [sys.executable, "-c", sys.argv[1]], MANIFEST, Serving(page=False))
"""


@pytest.mark.slow
def test_probes_are_answered_while_the_first_worker_loads_and_it_ends_with_its_server() -> None:
    command = [sys.executable, "-c", SERVING, LOADING]
    with subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        wait_for(url, "/health", 200)
        ready = httpx.get(f"{url}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        (worker,) = workers(child)
        child.kill()
        child.wait()
        for _ in range(100):
            if not Path(f"/proc/{worker}").exists():
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the worker outlived its server")


@pytest.mark.slow
def test_a_worker_killed_at_any_moment_costs_nobody_an_image() -> None:
    """Three images under way or waiting; the kill comes before, during and after the first."""
    with server() as (url, child), ThreadPoolExecutor() as pool:
        for delay in (0.0, 0.02, 0.12, 0.25, 0.41, 0.6):
            answers = [pool.submit(ask, url, "a cat", seed) for seed in range(3)]
            time.sleep(delay)
            (worker,) = workers(child)
            os.kill(worker, signal.SIGKILL)
            wait_for(url, "/ready", 503)
            assert httpx.get(url + "/health").status_code == 200
            assert [colour(answer.result()) for answer in answers] == [[seed, 8, 5] for seed in range(3)]
            wait_for(url, "/ready", 200)
            (other,) = workers(child)
            assert other != worker


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [KILL_PROMPT, HANG_PROMPT])
def test_a_job_that_kills_its_worker_takes_no_other_along(prompt: str) -> None:
    with server() as (url, child), ThreadPoolExecutor() as pool:
        poison = pool.submit(ask, url, prompt)
        others = [pool.submit(ask, url, "a cat", seed) for seed in range(3)]
        assert poison.result().json()["error"]["code"] == "worker_lost"
        assert [colour(other.result()) for other in others] == [[seed, 8, 5] for seed in range(3)]
        wait_for(url, "/ready", 200)
        assert len(workers(child)) == 1


@pytest.mark.slow
def test_a_worker_that_was_stopped_is_replaced() -> None:
    """SIGSTOP: the process lives and does nothing, as with a driver that hangs."""
    with server() as (url, child), ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, url, "a cat")
        time.sleep(0.1)
        (worker,) = workers(child)
        os.kill(worker, signal.SIGSTOP)
        assert colour(answer.result()) == [1, 8, 5]
        assert workers(child) != [worker]


def test_nan_fails_the_image_and_nothing_else() -> None:
    with server() as (url, child), ThreadPoolExecutor() as pool:
        before = workers(child)
        answers = [pool.submit(ask, url, prompt) for prompt in ("a cat", NAN_PROMPT, "a cat")]
        assert [answer.result().status_code for answer in answers] == [200, 500, 200]
        assert answers[1].result().json()["error"]["code"] == "non_finite_output"
        assert workers(child) == before


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.15, 0.5, 0.9])
def test_what_a_killed_server_had_accepted_is_finished_by_the_next(tmp_path: Path, delay: float) -> None:
    database = str(tmp_path / "jobs.db")
    with server(database) as (url, child), ThreadPoolExecutor() as pool:
        keys = [f"key-{seed}" for seed in range(4)]
        answers = [pool.submit(ask, url, "a cat", seed, **{"Idempotency-Key": key}) for seed, key in enumerate(keys)]
        wait_until_accepted(tmp_path / "jobs.db", 4)
        time.sleep(delay)
        orphans = workers(child)
        child.kill()
        gone = [answer.exception() for answer in answers]
    assert any(isinstance(error, httpx.TransportError) for error in gone) or delay
    for orphan in orphans:
        wait_until_gone(orphan)
    with server(database) as (url, child):
        for seed, key in enumerate(keys):
            assert colour(ask(url, "a cat", seed, **{"Idempotency-Key": key})) == [seed, 8, 5]
        child.terminate()
        assert child.wait(20) == 0
    store = JobStore(tmp_path / "jobs.db")
    jobs = store.history(10, None, None)
    assert sorted(job.idempotency_key or "" for job in jobs) == keys  # none lost, none twice
    assert all(job.state == "done" and job.attempts <= 2 for job in jobs)
    store.close()


def wait_until_accepted(database: Path, count: int) -> None:
    deadline = time.monotonic() + 10
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        while connection.execute("SELECT count(*) FROM jobs").fetchone()[0] < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    connection.close()


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "a worker outlives its server"
        time.sleep(0.01)


def test_a_client_that_leaves_in_mid_stream_is_not_generated_for() -> None:
    fake = FakeLoop(seconds_per_step=STEP)
    with serving(fake) as url, httpx.Client(base_url=url, timeout=10) as http:
        body = {"prompt": "left", "stream": True, "partial_images": 3, "num_inference_steps": 100, "n": 2}
        with http.stream("POST", IMAGES, json=body) as response:
            assert response.status_code == 200
            while not fake.log:
                time.sleep(0.01)
        assert http.post(IMAGES, json={"prompt": "next"}).status_code == 200
    assert sum(prompt == "left" for prompt, _ in fake.log) < 20


def test_a_locked_database_refuses_new_jobs_and_answers_accepted_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "jobs.db"
    fake = FakeLoop(seconds_per_step=STEP)
    with serving(fake, database=database) as url, ThreadPoolExecutor() as pool:
        accepted = pool.submit(ask, url, "a cat", **{"Idempotency-Key": "mine"})
        assert fake.pending.wait(5)
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        refused = ask(url, "a dog")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert int(refused.headers["retry-after"]) > 0
        (told,) = [record.getMessage() for record in caplog.records if record.name == "server.api.errors"]
        assert "jobs.db: database is locked" in told and "jobs.db" not in refused.text
        assert colour(accepted.result()) == [1, 8, 5]
        assert httpx.get(url + "/health").status_code == 200
        other.execute("ROLLBACK")
        other.close()
        assert colour(ask(url, "a dog")) == [1, 8, 5]
    store = JobStore(database)
    assert [job.state for job in store.history(10, None, None)] == ["done", "done"]
    store.close()


def test_a_full_disk_refuses_new_jobs_and_answers_accepted_ones(tmp_path: Path) -> None:
    fake = FakeLoop(seconds_per_step=STEP)
    with serving(fake, database=tmp_path / "jobs.db") as url, ThreadPoolExecutor() as pool:
        accepted = pool.submit(ask, url, "a cat", **{"Idempotency-Key": "mine"})
        assert fake.pending.wait(5)
        with full_disk(fake):
            assert colour(accepted.result()) == [1, 8, 5]  # from memory
            refused = ask(url, "a dog " * 5000)
            assert refused.json()["error"]["code"] == "store_unavailable"
        assert colour(ask(url, "a dog")) == [1, 8, 5]
        assert colour(ask(url, "a cat", **{"Idempotency-Key": "mine"})) == [1, 8, 5]  # from the disk


@contextmanager
def full_disk(fake: FakeLoop) -> Iterator[None]:
    """As SQLite knows it: no page more."""
    connection = fake.store.database.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.slow
def test_a_stream_is_finished_before_the_end() -> None:
    with server() as (url, child), httpx.Client(base_url=url, timeout=20) as http:
        body = {"prompt": "a cat", "stream": True, "num_inference_steps": 50}
        with http.stream("POST", IMAGES, json=body) as response:
            child.terminate()
            assert "image_generation.completed" in response.read().decode()
        assert child.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_an_end_in_order_costs_the_task_that_was_generated_no_attempt(tmp_path: Path, kind: signal.Signals) -> None:
    database = tmp_path / "jobs.db"
    with server(str(database)) as (url, child):
        body = {"prompt": "a cat", "num_inference_steps": 100}
        task = httpx.post(f"{url}/v1/generate", json=body).json()["task_id"]
        while httpx.get(f"{url}/v1/task/{task}").json()["progress"] < 2:
            time.sleep(0.02)
        child.send_signal(kind)
        assert child.wait(20) == 0
    store = JobStore(database)
    kept = store.get(task)
    assert kept is not None and (kept.state, kept.attempts) == ("queued", 0)
    store.close()


@pytest.mark.slow
def test_a_websocket_that_was_left_holds_up_no_end() -> None:
    with server() as (url, child):
        body = {"prompt": "a cat", "num_inference_steps": 100, "num_images": 4}
        _, waiting = (httpx.post(f"{url}/v1/generate", json=body).json()["task_id"] for _ in range(2))
        with connect(f"{url.replace('http', 'ws')}/v1/task/{waiting}/ws") as socket:
            socket.send("anything")
            assert json.loads(socket.recv())["queue_position"] == 1
        child.terminate()
        assert child.wait(10) == 0  # of the 20 s that it had


@pytest.mark.slow
def test_sigterm_under_load_answers_everybody(tmp_path: Path) -> None:
    database = tmp_path / "jobs.db"
    with server(str(database)) as (url, child), ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, url, "a cat", seed) for seed in range(10)]
        wait_until_accepted(database, 10)
        child.terminate()
        found = [answer.result() for answer in answers]
        assert child.wait(20) == 0
    assert [colour(response) for response in found] == [[seed, 8, 5] for seed in range(10)]
