"""`zimage-serve` as a process: its output, its exit status and its shutdown."""

import asyncio
import inspect
import signal
import socket
import time
from asyncio import selector_events
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.processes import FAKE_SERVER, process, ready_url

from server import settings_sources
from server.cli import _warnings, main
from server.http.sockets import ACCEPT_FAILED, bind_socket, throttle_accept_errors
from server.serving import _lock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_ready_server_with_status_0_and_no_traceback(number: signal.Signals) -> None:
    with process(*FAKE_SERVER, "0.0", "20") as child:
        url = ready_url(child)
        assert httpx.get(f"{url}/health").status_code == 200
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_names_of_the_model_and_origins_reach_the_application() -> None:
    with process(*FAKE_SERVER, "0", "1", *[""] * 6, "first second", "https://app.example.com") as child:
        url = ready_url(child)
        answer = httpx.get(f"{url}/v1/models", headers={"origin": "https://app.example.com"})
        refused = httpx.post(f"{url}/v1/generate", json={"prompt": "a cat", "model": "third"})
        page = httpx.get(f"{url}/")
    assert [model["id"] for model in answer.json()["data"]] == ["first", "second"]
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert refused.status_code == 404
    assert page.status_code == 200


def test_accepted_connections_have_tcp_nodelay() -> None:
    """Without it, Linux delays every response on a kept connection by 40 ms."""

    async def accepted_option() -> int:
        found = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accept, sock=bind_socket("127.0.0.1", 0)) as server:
            with socket.create_connection(server.sockets[0].getsockname()):
                return await found

    assert asyncio.run(accepted_option()) == 1


def test_running_image_is_finished_within_the_grace_period() -> None:
    status, body = answer_across_sigterm(seconds_per_step=0.1, grace=20)
    assert status == 200
    assert body["data"]


def test_image_that_outlasts_the_grace_period_is_503() -> None:
    status, body = answer_across_sigterm(seconds_per_step=0.5, grace=1)
    assert status == 503
    assert body["error"]["code"] == "server_shutting_down"


def answer_across_sigterm(seconds_per_step: float, grace: float) -> tuple[int, dict[str, Any]]:
    """Return the answer to a request for an image of eight steps, during which the server gets SIGTERM."""
    with process(*FAKE_SERVER, str(seconds_per_step), str(grace)) as child, ThreadPoolExecutor() as pool:
        url = httpx.URL(ready_url(child))
        with socket.create_connection((url.host, url.port)):  # an idle connection must not delay the end
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
def test_missing_plans_exit_with_1_and_the_folder(tmp_path: Path, directory: str) -> None:
    (tmp_path / "empty").mkdir()
    err = refusal("--engines", str(tmp_path / directory), "--port", "0")
    assert directory in err and "build-engines" in err


def test_port_in_use_exits_with_1_and_the_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        err = refusal("--engines", str(tmp_path), "--port", str(port))
    assert f"127.0.0.1:{port}" in err and "in use" in err


def test_host_of_another_machine_exits_with_1_and_the_address(tmp_path: Path) -> None:
    assert "192.0.2.1" in refusal("--engines", str(tmp_path), "--host", "192.0.2.1", "--port", "0")


def refusal(*arguments: str) -> str:
    """Return the error of a failed start: one line on stderr, nothing on stdout."""
    with process("-m", "server.cli", *arguments) as child:
        out, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert out == ""
    assert err.startswith("zimage-serve: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_invalid_port_exits_with_2(tmp_path: Path, port: str) -> None:
    with process("-m", "server.cli", "--engines", str(tmp_path), f"--port={port}") as child:
        _, err = child.communicate(timeout=20)
    assert child.returncode == 2
    assert "--port" in err


@pytest.mark.parametrize("host", ["", " "])
def test_empty_host_is_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--engines", "nowhere", "--host", host])
    assert "must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "keys", "is_warned"),
    [("127.0.0.1", "", False), ("::1", "", False), ("0.0.0.0", "", True), ("::", "", True), ("0.0.0.0", "key", False)],
)
def test_bind_beyond_loopback_without_keys_is_a_warning(address: str, keys: str, is_warned: bool) -> None:
    given = settings_sources.read(["--engines", "plans", *(["--keys", keys] if keys else [])])
    assert ("there are no API keys; set --keys" in " ".join(_warnings(given, address))) is is_warned


def test_warning_without_keys_names_the_shared_history() -> None:
    for more in ([], ["--shared-history"]):
        warning = " ".join(_warnings(settings_sources.read(["--engines", "x", *more]), "::"))
        assert ("see and delete everybody's (--shared-history)" in warning) is bool(more)


def test_variable_of_uvicorn_that_is_not_read_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    given = settings_sources.read(["--engines", "plans"])
    assert any(
        "FORWARDED_ALLOW_IPS is not read; use --trusted-proxies" in warning for warning in _warnings(given, "::1")
    )


def test_database_locked_by_one_path_is_in_use_by_another(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "jobs")
    with _lock(tmp_path / "jobs"), pytest.raises(OSError, match="is in use by another"), _lock(tmp_path / "other"):
        pass


def test_repeated_accept_errors_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    throttle_accept_errors(loop)
    for _ in range(1000):
        loop.call_exception_handler({"message": ACCEPT_FAILED, "exception": OSError(24, "Too many open files")})
    loop.call_exception_handler({"message": "something else"})
    loop.close()
    room, other = (record.getMessage() for record in caplog.records)
    assert "Too many open files" in room and other == "something else"


def test_asyncio_still_reports_accept_errors_in_these_words() -> None:
    assert ACCEPT_FAILED in inspect.getsource(selector_events)
