"""Servers with fake workers that tests kill and stop: processes, requests and probes."""

import base64
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from fakes.processes import FAKE_SERVER, PYTHONPATH, ROOT
from fakes.server import IMAGES, decoded

STEP = 0.05  # seconds; an image has eight


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a server with fake workers; yield its URL and its process."""
    with running(sys.executable, *FAKE_SERVER, str(STEP), "20", *arguments) as found:
        yield found


@contextmanager
def running(*command: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command of a server; yield its URL and its process."""
    environment = {"PYTHONPATH": PYTHONPATH, "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
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
    """Return the seed, the steps and the length of the prompt, which the fake shows as a colour."""
    assert response.status_code == 200, response.text
    return decoded(base64.b64decode(response.json()["data"][0]["b64_json"]))[0, 0].tolist()


def wait_for(url: str, path: str, status: int) -> None:
    """Wait until a path answers with a status."""
    started = time.monotonic()
    while True:
        with suppress(httpx.ConnectError):  # the server does not listen yet
            if httpx.get(url + path, timeout=5).status_code == status:
                break
        assert time.monotonic() - started < 20, f"{path} never answered {status}"
        time.sleep(0.01)


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
