"""`zimage-serve` as a process: what it says, how it ends."""

import asyncio
import inspect
import signal
import socket
import statistics
import time
from asyncio import selector_events
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.processes import FAKE_SERVER, process, ready_url

from server.cli import main
from server.http.sockets import ACCEPT_FAILED, throttle_accept_errors
from server.serving import _lock


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_ends_quietly(how: signal.Signals) -> None:
    with process(*FAKE_SERVER, "0.0", "20") as child:
        url = ready_url(child)
        assert httpx.get(f"{url}/health").status_code == 200
        child.send_signal(how)
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_a_kept_connection_does_not_wait_for_delayed_acknowledgements() -> None:
    with process(*FAKE_SERVER, "0.0", "20") as child, httpx.Client(base_url=ready_url(child)) as http:
        seconds = statistics.median(http.get("/health").elapsed.total_seconds() for _ in range(15))
    assert seconds < 0.03  # Linux delays them by 40 ms


def test_an_image_being_generated_is_finished_before_the_end() -> None:
    status, body = answer_across_sigterm(seconds_per_step=0.1, grace=20)
    assert status == 200
    assert body["data"]


def test_an_image_that_takes_too_long_is_cut_off() -> None:
    status, body = answer_across_sigterm(seconds_per_step=0.5, grace=1)
    assert status == 503
    assert body["error"]["code"] == "server_shutting_down"


def answer_across_sigterm(seconds_per_step: float, grace: float) -> tuple[int, dict[str, Any]]:
    """What a client gets whose image of eight steps is being generated when the server is told to stop."""
    with process(*FAKE_SERVER, str(seconds_per_step), str(grace)) as child, ThreadPoolExecutor() as pool:
        url = httpx.URL(ready_url(child))
        with socket.create_connection((url.host, url.port)):  # an idle connection, which must not matter
            request = {"prompt": "a cat"}
            answer = pool.submit(httpx.post, f"{url}/v1/images/generations", json=request, timeout=20)
            time.sleep(0.5)
            child.terminate()
            response = answer.result()
        _, err = child.communicate(timeout=10)
    assert child.returncode == 0
    assert "Traceback" not in err
    assert response.headers["x-request-id"]
    return response.status_code, response.json()


@pytest.mark.parametrize("directory", ["missing", "empty"])
def test_no_plans(tmp_path: Path, directory: str) -> None:
    (tmp_path / "empty").mkdir()
    err = refusal("--engines", str(tmp_path / directory), "--port", "0")
    assert directory in err and "build-engines" in err


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        err = refusal("--engines", str(tmp_path), "--port", str(port))
    assert f"127.0.0.1:{port}" in err and "in use" in err


def test_a_host_that_is_not_ours(tmp_path: Path) -> None:
    assert "192.0.2.1" in refusal("--engines", str(tmp_path), "--host", "192.0.2.1", "--port", "0")


def refusal(*arguments: str) -> str:
    """What a start that fails says: one line on stderr, nothing on stdout."""
    with process("-m", "server.cli", *arguments) as child:
        out, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert out == ""
    assert err.startswith("zimage-serve: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    with process("-m", "server.cli", "--engines", str(tmp_path), f"--port={port}") as child:
        _, err = child.communicate(timeout=20)
    assert child.returncode == 2
    assert "--port" in err


@pytest.mark.parametrize("host", ["", " "])
def test_an_empty_host_is_not_every_interface(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--engines", "nowhere", "--host", host])
    assert "must not be empty" in capsys.readouterr().err


def test_two_names_of_a_database_are_one(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "jobs")
    with _lock(tmp_path / "jobs"), pytest.raises(OSError, match="is in use by another"), _lock(tmp_path / "other"):
        pass


def test_that_descriptors_are_used_up_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    throttle_accept_errors(loop)
    for _ in range(1000):
        loop.call_exception_handler({"message": ACCEPT_FAILED, "exception": OSError(24, "Too many open files")})
    loop.call_exception_handler({"message": "something else"})
    loop.close()
    room, other = (record.getMessage() for record in caplog.records)
    assert "Too many open files" in room and other == "something else"


def test_asyncio_says_so_in_these_words() -> None:
    assert ACCEPT_FAILED in inspect.getsource(selector_events)
