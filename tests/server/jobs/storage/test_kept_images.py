"""Database and archive of real servers: what an answer promises is still there after a kill and a jump of the clock."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fakes.archive import names
from fakes.faults import ask, colour, server
from fakes.processes import FAKE_SERVER, PYTHONPATH, ROOT

from server.jobs.storage.store import JobStore

IMAGES = 24


def places(tmp_path: Path) -> tuple[str, ...]:
    """Return the arguments of a server with a database and an archive."""
    return str(tmp_path / "jobs.db"), "", "", "", "", "", str(tmp_path / "images")


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
