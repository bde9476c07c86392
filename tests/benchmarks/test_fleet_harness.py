"""The harness of `zimage-bench scaling` and `fleet-faults`: what it looks for, it finds."""

import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from benchmarks import scaling
from benchmarks.fleet import records, stand_in_measurements
from benchmarks.fleet.accounting import Accounts, Request
from benchmarks.fleet.logs import tracebacks
from benchmarks.fleet.network import Network
from benchmarks.fleet.plans import MANIFEST, picture, read_times, write_plans
from benchmarks.fleet.recovery import Recovery
from benchmarks.fleet.timed_loop import TimedLoop
from engine.plan.directory import read
from engine.request import ImageRequest
from engine.scheduler.batch_table import PassTimes
from engine.scheduler.events import Denoised, Passed

IMAGE = ImageRequest("a cat", 64, 64, 5, 2)
TABLES = """
CREATE TABLE jobs (id TEXT, idempotency_key TEXT, state TEXT, finished REAL, image_count INTEGER);
CREATE TABLE images (job TEXT, number INTEGER)
"""
LISTEN = """import socket, sys, time
sockets = [socket.create_server((address, 7011)) for address in sys.argv[1:]]
print(flush=True)
time.sleep(60)"""
ASK = "import socket, sys; socket.create_connection((sys.argv[1], 7011), timeout=1)"


def request(key: str = "key", **fields: object) -> Request:
    return replace(Request(key, IMAGE, 1, 0.0), **fields)  # type: ignore[arg-type]


def encoded(image: ImageRequest, steps: int = 2) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(image, steps)).save(file, "png")
    return file.getvalue()


def test_stand_in_draws_requests_in_batches_that_its_table_allows(tmp_path: Path) -> None:
    folder = write_plans(tmp_path, [PassTimes(64, 64, (0.001, 0.0011))])
    loop, sizes, images = TimedLoop(read(folder), read_times(folder), slots=4), [], {}
    for seed in range(3):
        loop.submit(str(seed), replace(IMAGE, seed=seed))
    while not loop.is_idle:
        for event in loop.step():
            match event:
                case Passed(batch, _):
                    sizes.append(batch)
                case Denoised(key, pending):
                    images[key] = pending.finish().pixels
    assert sizes == [2, 2, 1, 1]
    assert all((images[str(seed)] == picture(replace(IMAGE, seed=seed), 2)).all() for seed in range(3))


def test_pictures_of_other_requests_differ() -> None:
    others = [replace(IMAGE, seed=6), replace(IMAGE, prompt="a dog"), replace(IMAGE, lora="ink")]
    pictures = {picture(image, 2).tobytes() for image in (IMAGE, *others)} | {picture(IMAGE, 1).tobytes()}
    assert len(pictures) == 5
    assert (picture(replace(IMAGE, guidance_scale=MANIFEST.model.default_guidance), 2) == picture(IMAGE, 2)).all()


def test_wrong_images_failures_and_second_jobs_are_broken_promises() -> None:
    accounts = Accounts(may_fail=("worker_lost",))
    sent = accounts.open(request())
    accounts.learn(sent, "job_1")
    accounts.check_image(sent, 0, encoded(IMAGE))
    accounts.end(sent, "done", 1.0)
    for outcome, must_succeed in (("worker_lost", True), ("worker_lost", False), ("cancelled", False)):
        accounts.end(accounts.open(request(must_succeed=must_succeed)), outcome, 1.0)
    assert not accounts.broken
    accounts.check_image(sent, 1, encoded(IMAGE))
    accounts.check_image(sent, 0, b"no image")
    accounts.learn(sent, "job_2")
    for outcome in ("cancelled", "store_unavailable", "no answer"):
        accounts.end(accounts.open(request()), outcome, 1.0)
    assert accounts.broken == {
        "wrong image": 2, "two jobs for one request": 1, "failed job": 2, "no answer": 1,
    }  # fmt: skip
    assert accounts.outcomes == {"done": 1, "worker_lost": 2, "cancelled": 2, "store_unavailable": 1, "no answer": 1}


def test_database_without_end_or_images_and_with_two_of_them_breaks_promises(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(TABLES)
        records.install(postgres_url)
        for job, key in (("right", "a"), ("open", "b"), ("twice", "b"), ("empty", "c"), ("doubled", "d")):
            connection.execute("INSERT INTO jobs VALUES (%s, %s, 'running', NULL, 1)", (job, key))
        connection.execute("UPDATE jobs SET state = 'queued' WHERE id = 'right'")
        for job in ("right", "twice", "doubled", "doubled"):
            connection.execute("INSERT INTO images VALUES (%s, 0)", (job,))
        connection.execute("UPDATE jobs SET state = 'running'")
        connection.execute("UPDATE jobs SET state = 'done', finished = 1 WHERE id <> 'open'")
        connection.execute("UPDATE jobs SET state = 'failed' WHERE id = 'twice'")
    accounts = Accounts()
    accounts.requests += [request(job="right", outcome="done"), request(job="twice", outcome="done")]
    accounts.requests += [request(job="lost")]
    assert records.unfinished_jobs(postgres_url) == ["open"]
    counted = records.check(records.read(postgres_url), accounts)
    assert counted == {"accepted": 5, "ended": 4, "ended_twice": 1, "images": 4, "queued_again": 1}
    assert accounts.broken == {
        "job without an end": 1,
        "job ended twice": 1,
        "job is done without its images": 1,
        "image stored twice": 1,
        "two jobs for one key": 1,
        "another end in the database": 1,
        "accepted job is not in the database": 1,
    }


def test_equal_tracebacks_are_counted_together(tmp_path: Path) -> None:
    lines = [{"logger": "a", "exc_info": f"Traceback\n  File\nOSError: port {port}"} for port in (10, 22)]
    text = [json.dumps(line) for line in (*lines, {"logger": "a", "message": "Traceback"})]
    (tmp_path / "log").write_text("\n".join([*text, "Traceback (most recent call last):", "not JSON"]))
    assert tracebacks([tmp_path / "log"]) == {"a: OSError: port ##": 2, "Traceback": 1}


def test_recovery_counts_from_the_fault() -> None:
    times = [(0.0, 9.0), (8.0, 14.0), (9.5, 12.0), (10.5, 13.0), (20.0, 21.0)]
    requests = [request(started=started, ended=ended, outcome="done") for started, ended in times]
    found = Recovery.of("a fault", 10.0, 11.0, requests, until=15.0)
    assert found == Recovery("a fault", 1.0, 3.0, 4.0, 2.0, 2)
    assert Recovery.of("a fault", 10.0, 11.0, requests).longest_gap == 7.0
    assert Recovery.of("a fault", 30.0, 31.0, requests).first_success is None


def test_cut_link_carries_nothing_and_the_other_one_does() -> None:
    if missing := Network.missing():
        pytest.skip(f"needs {missing}")
    with Network(links=2) as network:
        server = subprocess.Popen([sys.executable, "-c", LISTEN, *network.addresses], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()

            def reaches(address: str) -> bool:
                done = subprocess.run([*network.prefix, sys.executable, "-c", ASK, address], stderr=subprocess.DEVNULL)
                return done.returncode == 0

            network.cut(0)
            assert [reaches(address) for address in network.addresses] == [False, True]
            network.mend(0)
            until = time.monotonic() + 20
            while not reaches(network.addresses[0]):
                assert time.monotonic() < until
        finally:
            server.kill()
            server.communicate()


@pytest.mark.slow
def test_scaling_measures_an_embedded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in_measurements, "LARGE_PASS", 0.02)
    monkeypatch.setitem(scaling.LEAST, "embedded", 0.0)
    found = scaling.measure("embedded", [1], seconds=2.0, requests=5, warm_up=0.5)
    assert found["images"] > 10 and not found["broken"], found["notes"]
    assert found["cost"]["requests"] == 5 and found["cost"]["p50_s"] > 0
    assert 0 < found["workers"][1]["of_linear"] <= 1.1
