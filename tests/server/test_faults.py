"""Workers that are killed or hang, as real processes: accepted images are still generated."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fakes.faults import STEP, ask, colour, server, wait_for, workers
from fakes.loop import HANG_PROMPT, HANG_TOKENIZER_PROMPT, KILL_PROMPT, KILL_TOKENIZER_PROMPT, NAN_PROMPT, FakeLoop
from fakes.processes import PYTHONPATH, ROOT
from fakes.server import IMAGES, serving

LOADING = """
import socket, sys, threading, time
from server.worker.process import _exit_with_server
threading.Thread(target=_exit_with_server, args=[socket.socket(fileno=int(sys.argv[1]))], daemon=True).start()
time.sleep(60)
"""


SERVING = """
import sys
from fakes.loop import MANIFEST
from server.serving import ServerOptions, serve
from server.http.sockets import bind_socket
from server.worker.supervisors import WorkerCommand
sock = bind_socket("127.0.0.1", 0)
print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
worker = WorkerCommand("cpu", [sys.executable, "-c", sys.argv[1]])
serve(sock, [worker], MANIFEST, ServerOptions(page=False))
"""


@pytest.mark.slow
def test_probes_answer_while_the_first_worker_loads_and_it_exits_with_its_server() -> None:
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
def test_worker_killed_at_any_moment_loses_no_image() -> None:
    """Kill the worker before, during and after the first of three images."""
    with server() as (url, child), ThreadPoolExecutor() as pool:
        for delay in (0.0, 0.12, 0.41, 0.6):
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
@pytest.mark.parametrize("prompt", [KILL_PROMPT, HANG_PROMPT, KILL_TOKENIZER_PROMPT, HANG_TOKENIZER_PROMPT])
def test_job_that_kills_its_worker_fails_alone(prompt: str) -> None:
    with server() as (url, child), ThreadPoolExecutor() as pool:
        poison = pool.submit(ask, url, prompt)
        others = [pool.submit(ask, url, "a cat", seed) for seed in range(3)]
        assert poison.result().json()["error"]["code"] == "worker_lost"
        assert [colour(other.result()) for other in others] == [[seed, 8, 5] for seed in range(3)]
        wait_for(url, "/ready", 200)
        assert len(workers(child)) == 1


@pytest.mark.slow
def test_stopped_worker_is_replaced() -> None:
    """SIGSTOP leaves a process that does nothing, like a driver that hangs."""
    with server() as (url, child), ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, url, "a cat")
        time.sleep(0.1)
        (worker,) = workers(child)
        os.kill(worker, signal.SIGSTOP)
        assert colour(answer.result()) == [1, 8, 5]
        assert workers(child) != [worker]


@pytest.mark.slow
def test_worker_survives_a_pause_of_the_machine() -> None:
    """A suspended laptop stops server and worker alike, for longer than a worker may be silent."""
    with server() as (url, child), ThreadPoolExecutor() as pool:
        before = workers(child)
        for _ in range(2):
            answer = pool.submit(ask, url, "a cat")
            time.sleep(0.1)
            for pid in (child.pid, *before):
                os.kill(pid, signal.SIGSTOP)
            time.sleep(3.0)
            for pid in (child.pid, *before):  # the server first: it finds a silent worker
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.2)
            assert colour(answer.result()) == [1, 8, 5]
        assert workers(child) == before


def test_nan_fails_its_image_and_no_other() -> None:
    with server() as (url, child), ThreadPoolExecutor() as pool:
        before = workers(child)
        answers = [pool.submit(ask, url, prompt) for prompt in ("a cat", NAN_PROMPT, "a cat")]
        assert [answer.result().status_code for answer in answers] == [200, 500, 200]
        assert answers[1].result().json()["error"]["code"] == "non_finite_output"
        assert workers(child) == before


def test_client_that_disconnects_mid_stream_cancels_its_images() -> None:
    fake = FakeLoop(seconds_per_step=STEP)
    with serving(fake) as url, httpx.Client(base_url=url, timeout=10) as http:
        body = {"prompt": "left", "stream": True, "partial_images": 3, "num_inference_steps": 100, "n": 2}
        with http.stream("POST", IMAGES, json=body) as response:
            assert response.status_code == 200
            while not fake.log:
                time.sleep(0.01)
        assert http.post(IMAGES, json={"prompt": "next"}).status_code == 200
    assert sum(prompt == "left" for prompt, _ in fake.log) < 20
