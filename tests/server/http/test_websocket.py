"""WebSocket clients that send pings without reading, or text that is not UTF-8, cost their connection and no more."""

import logging

import httpx
import psutil
import pytest
from fakes.loop import FakeLoop
from fakes.raw_client import MEGABYTE, read_to_end, upgraded
from fakes.server import serving

from server.http import timeouts

PINGS = (b"\x89\xfd\0\0\0\0" + bytes(125)) * 8000


def events_path(http: httpx.Client) -> str:
    """The WebSocket of a task that takes longer than the test."""
    answer = http.post("/v1/generate", json={"prompt": "a cat", "num_inference_steps": 100})
    return f"/v1/task/{answer.json()['task_id']}/ws"


@pytest.mark.timing
def test_pongs_for_a_client_that_does_not_read_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "WRITE_SECONDS", 1.0)
    with (
        serving(FakeLoop(seconds_per_step=0.5)) as url,
        httpx.Client(base_url=url) as http,
        upgraded(url, events_path(http)) as flood,
    ):
        before = psutil.Process().memory_info().rss
        with pytest.raises(ConnectionError):
            for _ in range(100):
                flood.sendall(PINGS)
        assert psutil.Process().memory_info().rss - before < 30 * MEGABYTE


def test_invalid_utf_8_closes_a_websocket_with_1007_and_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving(FakeLoop(seconds_per_step=0.1)) as url,
        httpx.Client(base_url=url) as http,
        upgraded(url, events_path(http)) as client,
    ):
        client.sendall(b"\x01\x81\0\0\0\0\xc3" + b"\x80\x81\0\0\0\0\xa4")  # a letter in two frames
        client.sendall(b"\x81\x82\0\0\0\0\xff\xfe")
        assert b"\x88\x02\x03\xef" in read_to_end(client)
        assert http.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
