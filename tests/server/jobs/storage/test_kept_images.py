"""Database and archive of real servers: what an answer promises is still there after a kill and a jump of the clock."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from fakes.archive import names
from fakes.faults import ask, colour, server, wait_until_accepted
from fakes.processes import FAKE_SERVER, PYTHONPATH, ROOT
from fakes.server import decoded
from fakes.waiting import wait_until

from server.jobs.storage.store import JobStore

IMAGES = 24


def places(tmp_path: Path) -> tuple[str, ...]:
    """Return the arguments of a server with a database and an archive."""
    return str(tmp_path / "jobs.db"), "", "", "", "", str(tmp_path / "images")


@pytest.mark.slow
def test_answered_images_are_archived_and_done_after_kill_9(tmp_path: Path) -> None:
    with server(*places(tmp_path)) as (url, child), ThreadPoolExecutor(IMAGES) as pool:
        answers = list(pool.map(lambda seed: ask(url, "a cat", seed), range(IMAGES)))
        child.kill()
        child.wait()
    assert [colour(answer)[0] for answer in answers] == list(range(IMAGES))
    assert len([name for name in names(tmp_path / "images") if name.endswith(".png")]) == IMAGES
    with closing(JobStore(tmp_path / "jobs.db")) as store:
        store.recover()
        assert [job.state for job in store.history(99).jobs] == ["done"] * IMAGES


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


@pytest.mark.slow
def test_full_disk_of_database_and_archive_delays_answers_and_names_its_errors(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with server(*places(small_disk)) as (url, _), ThreadPoolExecutor() as pool:
        assert colour(ask(url, "a cat")) == [1, 8, 5]
        accepted = pool.submit(ask, url, "a cat", 2)
        wait_until_accepted(small_disk / "jobs.db", 2)
        fill(small_disk / "filler")
        assert colour(accepted.result()) == [2, 8, 5]
        for seed in range(50):  # the log has some room left
            refused = ask(url, "a dog " * 2000, seed)
            if refused.status_code != 200:
                break
        assert refused.json()["error"]["code"] == "store_unavailable"
        (small_disk / "filler").unlink()
        assert colour(ask(url, "a cat", 3)) == [3, 8, 5]
        archived = len(names(small_disk / "images"))
        assert colour(ask(url, "a cat", 4)) == [4, 8, 5]
        assert len(names(small_disk / "images")) == archived + 1
        tasks = httpx.get(f"{url}/v1/tasks").json()["tasks"]
        assert {task["status"] for task in tasks} == {"done"}
    said = capfd.readouterr().err
    assert "is not archived: [Errno 28] No space left on device" in said
    assert "jobs.db: database or disk is full; free disk space" in said or "disk I/O error; the disk fails or" in said


def finished(url: str, task: str) -> bytes:
    """Wait for a task and return its image."""
    while (status := httpx.get(f"{url}/v1/task/{task}").json())["status"] != "done":
        assert status["status"] in ("pending", "running"), status
        time.sleep(0.02)
    return httpx.get(status["result"]["paths"][0]).content


@pytest.mark.slow
def test_task_is_done_only_with_its_image_on_a_disk_that_was_full(
    small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "jobs.db"
    arguments = (str(database), *[""] * 8, "0", "0", "yes", f"file://{small_disk}/images")
    with server(*arguments) as (url, child):
        first = httpx.post(f"{url}/v1/generate", json={"prompt": "a cat", "seed": 1}).json()["task_id"]
        assert decoded(finished(url, first))[0, 0, 0] == 1
        fill(small_disk / "filler")
        second = httpx.post(f"{url}/v1/generate", json={"prompt": "a cat", "seed": 2}).json()["task_id"]
        assert decoded(finished(url, second))[0, 0, 0] == 2  # from memory
        child.kill()
        child.wait()
    with closing(JobStore(database)) as store:
        assert {job.id: job.state for job in store.history(9).jobs} == {first: "done", second: "running"}
    (small_disk / "filler").unlink()
    with server(*arguments) as (url, _):
        assert decoded(finished(url, second))[0, 0, 0] == 2  # generated again
        assert decoded(finished(url, first))[0, 0, 0] == 1
        assert httpx.delete(f"{url}/v1/task/{first}").status_code == 200
        wait_until(lambda: names(small_disk / "images") == {second})
    assert "images: No space left on device; free disk space, or keep fewer images" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
def test_server_restarted_ten_days_ahead_keeps_history_and_archive(tmp_path: Path) -> None:
    with server(*places(tmp_path)) as (url, _):
        assert ask(url, "a cat").status_code == 200
    kept = names(tmp_path / "images")
    command = ["faketime", "--exclude-monotonic", "-f", "+10d", sys.executable, *FAKE_SERVER, "0.05", "1"]
    with subprocess.Popen(
        [*command, *places(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": PYTHONPATH, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            url = child.stdout.readline().split("ready on ")[1].split()[0]  # pruned before its worker was ready
            assert len(httpx.get(f"{url}/v1/tasks").json()["tasks"]) == 1
        finally:
            child.kill()
    assert names(tmp_path / "images") == kept
