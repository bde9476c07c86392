"""`zimage-bench load` with its process of Locust, against servers in threads of the test."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fakes.image_server import ImageServer, image_server, pattern, png
from fakes.processes import AT_TERMINAL, ROOT, process
from fakes.waiting import wait_until

from benchmarks.cli import main
from benchmarks.load.client.cases import make_cases
from benchmarks.load.ladder import finished_rungs
from benchmarks.load.plan import LoadOptions, LoadPlan, Rung
from benchmarks.services.service import is_alive
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.mix import Mix

COMMAND = ["-m", "benchmarks.cli", "load"]
LOCUST = ["-m", "locust", "-f", "benchmarks/load/locustfile.py"]
STALL = 1.0  # seconds

pytestmark = pytest.mark.slow  # each starts a process of Locust


@pytest.fixture
def served() -> Iterator[tuple[ImageServer, str]]:
    with image_server() as found:
        yield found


def plan(url: str, records: Path, *rungs: Rung, **more: Any) -> LoadPlan:
    mix = Mix.sizes("64x64")
    options = LoadOptions(mix=mix, rungs=rungs, **more)
    return LoadPlan(url=url, cases=make_cases(mix, 2), references=None, records=str(records), options=options)


def last_line(output: str) -> dict[str, Any]:
    return dict(json.loads(output.splitlines()[-1]))


def test_stall_shows_in_an_open_loop_and_hides_in_a_closed_one(served: tuple[ImageServer, str], tmp_path: Path) -> None:
    server, url = served
    server.stall(20, STALL)  # in the open loop, which sends about 50 requests
    server.stall(90, STALL)  # in the closed loop
    rungs = Rung(rate=25.0, seconds=2.0, warmup=0.0), Rung(users=1, seconds=3.0, warmup=0.0)
    found = list(finished_rungs(plan(url, tmp_path, *rungs)))
    stalled_open, stalled_closed = (sum(each.latency > STALL / 2 for each in rung.records) for rung in found)
    assert stalled_open >= 5  # half of those that were due in the stall
    assert stalled_closed == 1  # the user waited, and so sent nothing that could have been slow
    latency = RungFigures.of(found[0].records, found[0].seconds).latency_s
    assert latency.p95 is not None and latency.p95 > STALL / 2
    closed = sorted(record.latency for record in found[1].records)
    assert len(closed) > 20 and closed[-2] < STALL / 2


def test_open_loop_counts_requests_beyond_its_limit_as_failures(
    served: tuple[ImageServer, str], tmp_path: Path
) -> None:
    server, url = served
    server.stall(1, 0.8)
    (rung,) = finished_rungs(plan(url, tmp_path, Rung(rate=40.0, seconds=0.8, warmup=0.0), max_in_flight=3))
    refused = [record for record in rung.records if "3 requests in flight (--max-in-flight)" in record.error]
    assert len(server.received) >= 3 and len(refused) == len(rung.records) - len(server.received)
    assert {record.outcome for record in refused} == {"failed"}
    assert RungFigures.of(rung.records, 0.8).success_percent != 100


def test_requests_of_a_rung_are_awaited_after_its_end(served: tuple[ImageServer, str], tmp_path: Path) -> None:
    server, url = served
    server.stall(1, 1.0)
    (rung,) = finished_rungs(plan(url, tmp_path, Rung(users=4, seconds=0.3, warmup=0.0)))
    assert [record.outcome for record in rung.records] == ["ok"] * 4
    assert all(record.ended > rung.seconds for record in rung.records)


def test_missed_objective_ends_with_status_3_and_met_ones_with_0(
    served: tuple[ImageServer, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"load.{name}" for name in ("json", "csv", "html")}
    words = ["load", "--url", served[1], "--users", "2", "--minutes", "0.01", "--think", "0", "--sizes", "64x64"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--slo", "success=100,p50=60s", "--output", str(files["json"]), "--csv", str(files["csv"])])
    assert end.value.code == 0
    found = last_line(capsys.readouterr().out)
    assert json.loads(files["json"].read_text()) == found
    (rung,) = found["figures"]["rungs"]
    assert (rung["users"], rung["success_percent"], rung["errors"]) == (2, 100.0, {})
    assert rung["requests"] > 0 and rung["queue_s"]["p50"] == 0.02
    compared = ["--compare", str(files["json"]), "--compare", f"{served[1]}/"]  # an earlier run, and another server
    with pytest.raises(SystemExit) as end:
        main([*words, "--name", "ours", "--slo", "success=100,rate=1000000", "--html", str(files["html"]), *compared])
    assert end.value.code == 3
    met = [each["is_met"] for each in last_line(capsys.readouterr().out)["figures"]["objectives"]]
    assert met == [True, False]
    page, address = files["html"].read_text(), served[1].removeprefix("http://")
    assert "</html>" in page and "ours" in page and page.count(address) > 1
    assert len(files["csv"].read_text().splitlines()) == 2


def test_server_that_draws_other_images_under_load_fails(
    served: tuple[ImageServer, str], capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = served
    server.draw = lambda body: [pattern(body["seed"] + (len(server.received) > 2), body["size"])]
    words = ["--cases", "2", "--sizes", "64x64", "--minutes", "0.01", "--think", "0", "--slo", "success=99"]
    with pytest.raises(SystemExit) as end:
        main(["load", "--url", url, "--users", "1", *words])
    assert end.value.code == 3
    (rung,) = last_line(capsys.readouterr().out)["figures"]["rungs"]
    assert rung["wrong_images"] == rung["requests"] > 0
    assert rung["errors"] == {"an image of something else than the request drawn alone": rung["requests"]}


def test_ctrl_c_keeps_what_was_measured(served: tuple[ImageServer, str]) -> None:
    server, url = served
    words = ["--users", "2,3", "--minutes", "5", "--warmup", "0", "--think", "0.01", "--sizes", "64x64"]
    words += ["--compare", f"{url}/"]  # gets no load any more
    with process(*AT_TERMINAL[1:], sys.executable, *COMMAND, "--url", url, *words) as command:
        while len(server.received) < 30:
            assert command.poll() is None
            time.sleep(0.01)
        server.stall(len(server.received) + 5, 60)  # some requests are cut off
        time.sleep(0.2)
        command.send_signal(signal.SIGINT)
        output, _ = command.communicate(timeout=60)
    assert command.returncode == 130 and "the same load on" not in output
    (rung,) = last_line(output)["figures"]["rungs"]
    assert rung["is_interrupted"] and rung["requests"] >= 20 and rung["success_percent"] == 100.0
    assert rung["cut_off"] == 2


def test_load_and_its_server_end_with_the_command_that_began_them(engines: Path) -> None:
    words = ["--engines", str(engines), "--users", "2", "--minutes", "5", "--think", "0.01", "--sizes", "64x64"]
    with process(*COMMAND, *words) as command:
        parent = psutil.Process(command.pid)
        wait_until(lambda: len(parent.children()) == 2, 60)  # the server, and then Locust
        found = parent.children(recursive=True)
        command.kill()
    wait_until(lambda: not any(is_alive(process) for process in found))
    assert len(found) > 2  # with the server's worker


def test_server_of_a_comparison_that_is_not_there_loses_no_figures(
    served: tuple[ImageServer, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "load.html"
    words = ["--users", "2", "--minutes", "0.01", "--think", "0", "--sizes", "64x64", "--html", str(page)]
    with pytest.raises(SystemExit, match=r"^zimage-bench: no server answers at http://127\.0\.0\.1:1"):
        main(["load", "--url", served[1], *words, "--compare", f"{served[1]}/", "--compare", "http://127.0.0.1:1"])
    assert last_line(capsys.readouterr().out)["figures"]["rungs"][0]["requests"] > 0
    assert "Side by side" in page.read_text()  # with the server that is there


@pytest.mark.parametrize(("breaks", "status"), [(False, 0), (True, 1)])
def test_plain_locust_runs_the_locustfile(served: tuple[ImageServer, str], breaks: bool, status: int) -> None:
    server, url = served
    if breaks:
        server.draw = lambda body: [pattern(body["seed"] + (len(server.received) > 4), body["size"])]
    settings = {"ZIMAGE_LOAD_SIZES": "64x64", "ZIMAGE_LOAD_THINK": "0.02"}
    with process(*LOCUST, "--host", url, "--headless", "--users", "2", "--spawn-rate", "9", **settings) as locust:
        wait_until(lambda: len(server.received) > 10, 60)  # four are references
        locust.terminate()
        output = "".join(locust.communicate(timeout=60))
    assert locust.returncode == status, output
    assert ("wrong_image" in output) == breaks


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "does not draw 64x64 alone (wrong_image)"),
        ({"ENDPOINT": "magic"}, "ZIMAGE_LOAD_ENDPOINT must be one of images, generate, tasks, stream, got 'magic'"),
        ({"THINK": "long"}, "could not convert string to float: 'long'"),
    ],
)
def test_locustfile_that_cannot_begin_ends_locust_with_the_reason(
    served: tuple[ImageServer, str], settings: dict[str, str], error: str
) -> None:
    server, url = served
    if not settings:
        server.draw = lambda _: [png(np.zeros((64, 64, 3)))]
    done = subprocess.run(
        [sys.executable, *LOCUST, "--host", url, "--headless"],
        cwd=ROOT,
        env={"ZIMAGE_LOAD_SIZES": "64x64"} | {f"ZIMAGE_LOAD_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "locustfile: " in done.stderr and error in done.stderr


@pytest.mark.parametrize("options", [["--blocking"], ["--serve-options", "--queue 2"]])
def test_servers_that_the_command_starts_draw_the_right_images(
    engines: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sizes", "64x64", "--cases", "1", "--users", "3", "--minutes", "0.03", "--warmup", "0", "--think", "0"]
    with pytest.raises(SystemExit) as end:
        main(["load", "--engines", str(engines), *options, *words, "--slo", "success=100"])
    found = last_line(capsys.readouterr().out)["figures"]
    (rung,) = found["rungs"]
    assert (end.value.code, rung["errors"]) == (0, {})
    assert rung["requests"] > 0 and rung["server"]["rss_mb"]["max"] > 0
    assert (found["target"]["server"] is None) == (options == ["--blocking"])
    assert (rung["throttled"]["honoured"] > 0) == (options != ["--blocking"])
