"""`zimage-bench soak`: its accounts find what they look for, and a short storm leaves all jobs ended."""

import asyncio
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.accounting import Accounts
from benchmarks.faults.audit import check_archive, check_database, check_logs, unfinished
from benchmarks.faults.cases import INNOCENT, Case, generate_all, is_same, ordinary, unusual
from benchmarks.faults.faults import FaultLog
from benchmarks.faults.samples import Sample, summary
from benchmarks.faults.server import Server
from benchmarks.soak import FLOODER, INNOCENT_KEY, KEYS, Storm, soak
from engine.request import ImageRequest
from engine.size import Size

CASE = Case("a cat", Size(16, 16), seed=5)
JOBS = [f"job_{number:032x}" for number in range(4)]


def accounts() -> Accounts:
    rng = np.random.default_rng(0)
    return Accounts({(CASE, index): rng.integers(0, 256, (16, 16, 3), np.uint8) for index in range(4)})


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def database(file: Path, **states: str) -> Path:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE jobs (id, state, finished)")
        for job, state in states.items():
            connection.execute("INSERT INTO jobs VALUES (?, ?, ?)", (job, state, None if state == "running" else 1.0))
    return file


def test_bodies_ask_for_the_image_that_the_engine_generates() -> None:
    case = Case("a cat", Size(64, 96), 5, steps=3, guidance=2.0, lora="ink")
    assert case.request(1) == ImageRequest("a cat", 64, 96, 6, 3, "a red square", 2.0, "ink")
    assert case.openai(n=2)["size"] == "64x96" and case.openai(n=2)["n"] == 2
    assert (case.task()["width"], case.task()["height"], case.task()["cfg_scale"]) == (64, 96, 3.0)
    assert len({*ordinary(), *unusual(["a", "b"]), INNOCENT}) == 16 + 2 + 2 + 3 + 1


def test_images_are_compared_with_a_tolerance() -> None:
    pixels = np.full((16, 16, 3), 100, np.uint8)
    assert is_same(encoded(pixels + np.uint8(1)), pixels, "png")
    assert not is_same(encoded(pixels + np.uint8(2)), pixels, "png")
    assert not is_same(encoded(pixels[:8]), pixels, "png")
    assert is_same(encoded(pixels, "webp"), pixels, "webp")
    assert not is_same(encoded(pixels // np.uint8(2), "jpeg"), pixels, "jpeg")


def test_wrong_images_and_second_ends_are_broken_promises() -> None:
    kept = accounts()
    kept.accept(JOBS[0], CASE)
    kept.check_image(JOBS[0], 0, encoded(kept.expected[CASE, 0]))
    kept.end(JOBS[0], "done")
    assert not kept.broken
    kept.check_image(JOBS[0], 1, encoded(kept.expected[CASE, 2]))
    kept.end(JOBS[0], "failed")
    kept.accept(JOBS[0], INNOCENT)
    assert kept.broken == {"wrong image": 1, "two ends": 1, "one job for two requests": 1}


def test_database_without_an_end_or_a_job_is_a_broken_promise(tmp_path: Path) -> None:
    kept = accounts()
    for job in JOBS:
        kept.accept(job, CASE)
    kept.end(JOBS[0], "failed")
    kept.deleted.add(JOBS[3])
    stored = database(tmp_path / "jobs.db", **{JOBS[0]: "done", JOBS[1]: "running"})
    assert check_database(stored, kept) == {"done": 1, "running": 1}
    assert kept.broken == {
        "another end in the database": 1,
        "job without an end": 1,
        "accepted job is not in the database": 1,
    }
    assert unfinished(stored) == 1


def test_answered_image_that_is_not_in_the_archive_is_a_broken_promise(tmp_path: Path) -> None:
    kept = accounts()
    kept.answered |= {(JOBS[1], 0), (JOBS[2], 3)}
    (tmp_path / "generated_20260101_000000_00000100.png").touch()
    assert check_archive(tmp_path, kept) == 1
    assert kept.notes == [f"answered image is not in the archive: {JOBS[2]}:3"]


def test_job_that_ends_twice_in_one_process_is_a_broken_promise(tmp_path: Path) -> None:
    """After a restart a job may end again: the kill came before its end was stored."""
    kept = accounts()
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    traceback = json.dumps({"message": "failed\n", "exc_info": "Traceback\nValueError: x"})
    logs[0].write_text(f"{JOBS[0]} done in 1.000 s\n{JOBS[1]} done in 1.0 s\n{JOBS[1]} worker_lost in 2.0 s\n")
    logs[1].write_text(f"{JOBS[0]} done in 1.000 s\n{traceback}\n")
    assert check_logs(logs, 2.0, kept) == {"lines_per_min": 2.5, "tracebacks": 1}
    assert kept.notes == [
        f"job ended twice: 0.log: {JOBS[1]}, 2 times",
        "traceback in the log: 1.log: failed: ValueError: x",
    ]


def test_samples_are_summarised_by_quarters() -> None:
    taken = [Sample(float(at), "server", 1, float(at), 10) for at in range(8)]
    assert summary(taken, "server")["mib"] == {"start": 0.0, "quarters": [0.5, 2.5, 4.5, 6.5], "max": 7.0, "end": 7.0}


def test_request_overlaps_a_fault_if_any_part_of_it_does() -> None:
    faults = FaultLog(windows=[(10.0, 20.0)])
    assert faults.overlaps(5.0, 11.0) and faults.overlaps(19.0, 30.0) and faults.overlaps(5.0, 30.0)
    assert not faults.overlaps(5.0, 10.0) and not faults.overlaps(20.0, 30.0)


@pytest.mark.slow
def test_short_storm_leaves_every_job_ended_and_every_image_right(engines: Path, tmp_path: Path) -> None:
    kept = Accounts(generate_all(engines, {}, threads=1))
    server = Server(engines, None, tmp_path, [*KEYS, FLOODER, INNOCENT_KEY], threads=1)
    try:
        figures = asyncio.run(soak(server, kept, [], Storm(seconds=6.0, clients=6, flood=3, seed=1, pause=(0.5, 1.0))))
    finally:
        server.stop()
    assert figures["unfinished"] == 0 and figures["images"] > 5 and figures["faults"]
    timely = {"the innocent client waits", "memory grows"}  # a storm of seconds says nothing about these
    assert not figures["broken"].keys() - timely, figures["notes"]
