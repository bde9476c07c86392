"""Log lines as text and as JSON, with the ids of their requests."""

import json
import logging
import subprocess
import sys

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.server import IMAGES, serving

from server import logs

LINE = """
import logging, sys
from server import logs
logs.configure(sys.argv[1], "info", process="worker")
logs.request_id.set("req_1")
logging.getLogger("server.x").info("%s done", "job_1", extra={"job": "job_1", "seconds": 1.5})
logging.getLogger("server.x").debug("not this")
"""


FLOOD = """
import logging, sys
from server import logs
logs.configure("text", "info", process="server")
log = logging.getLogger("server.x")
for number in range(1000):
    try:
        raise (KeyError if number % 2 else ValueError)(number)
    except Exception:
        log.exception("failed at %d", number)
    log.info("access %d", number)
"""


def written(form: str) -> str:
    return subprocess.run([sys.executable, "-c", LINE, form], capture_output=True, text=True, check=True).stderr


def test_json_format_writes_one_object_per_line() -> None:
    (line,) = written("json").splitlines()
    fields = json.loads(line)
    assert fields.pop("time").endswith("+00:00")
    assert fields == {
        "level": "INFO",
        "logger": "server.x",
        "message": "job_1 done",
        "request_id": "req_1",
        "process": "worker",
        "job": "job_1",
        "seconds": 1.5,
    }


def test_text_format_ends_with_the_request_id() -> None:
    (line,) = written("text").splitlines()
    assert line.endswith(" INFO worker server.x: job_1 done [req_1]")


def test_repeated_errors_are_counted_and_information_is_not() -> None:
    lines = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, check=True).stderr
    assert lines.count("Traceback") == lines.count("failed at") - 2 == 20
    assert lines.count("access ") == 1000
    assert "... and 490 more like this: failed at 0\n" in lines and "... and 490 more like this: failed at 1\n" in lines


def test_count_is_written_with_the_next_line_after_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    handler = logs.LimitedHandler(clock=lambda: now)
    log = logging.Logger("server.x")
    log.addHandler(handler)

    def warn() -> None:
        log.warning("too much")

    for _ in range(26_240):
        warn()
    assert capsys.readouterr().err == "too much\n" * logs.REPEATS
    now += logs.INTERVAL
    log.info("access")
    assert capsys.readouterr().err == "... and 26,230 more like this: too much\naccess\n"
    warn()
    assert capsys.readouterr().err == "too much\n"
    handler.close()
    assert capsys.readouterr().err == ""


def test_log_lines_of_a_request_have_its_id_and_its_job(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(logs._with_request_id)
    with serving(FakeLoop()) as url:
        answer = httpx.post(url + IMAGES, json={"prompt": "a cat"}, headers={"x-request-id": "mine"})
        httpx.get(f"{url}/health")
    mine = [record for record in caplog.records if getattr(record, "request_id", None) == "mine"]
    accepted = next(record for record in mine if "accepted" in record.getMessage())
    assert accepted.__dict__["job"] == answer.headers["x-job-id"]
    access = next(record for record in mine if record.name == "server.api.request_id")
    assert (access.__dict__["path"], access.__dict__["status"]) == (IMAGES, 200)
    ended = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith(accepted.__dict__["job"])
    ]
    assert any(" done in " in message for message in ended)
    ours = [record for record in caplog.records if record.name.startswith("server.")]
    assert not any("/health" in record.getMessage() for record in ours)
