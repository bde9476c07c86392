"""A new server, with real engines, measures which images share passes while it is idle, and then lets them."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timing]  # a busy machine may find that no batch gains

PASSES = re.compile(r"^zimage_forward_batch_size_(count|sum) (\S+)$", re.MULTILINE)


@pytest.fixture
def plans(engines: Path, tmp_path: Path) -> Path:
    """Plans without a table."""
    return shutil.copytree(engines, tmp_path / "engines", symlinks=True, ignore=shutil.ignore_patterns("batching"))


@contextmanager
def serving(plans: Path, *options: str) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "server.cli", "--engines", str(plans), "--port", "0", "--threads", "1"]
    command += ["--profile", "usual", *options]  # the large one takes long to measure
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split("ready on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=60) as http:
                yield http
        finally:
            server.terminate()


def batching(http: httpx.Client) -> dict[str, Any]:
    (device,) = http.get("/v1/model_info").json()["batching"]
    found: dict[str, Any] = device
    return found


def images_and_passes(http: httpx.Client) -> tuple[list[str], int, int]:
    """Draw 16 small images at once; return them, and the passes and the images in them since the start."""

    def draw(seed: int) -> str:
        body = {"prompt": "a red circle", "size": "64x64", "seed": seed, "response_format": "b64_json"}
        image: str = http.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
        return image

    with ThreadPoolExecutor(16) as pool:
        images = list(pool.map(draw, range(16)))
    counts = {name: int(float(value)) for name, value in PASSES.findall(http.get("/metrics").text)}
    return images, counts["count"], counts["sum"]


def test_new_server_measures_while_idle_and_batches_without_a_restart(plans: Path) -> None:
    with serving(plans) as http:
        assert batching(http) | {"sizes": None} == {
            "device": "cpu",
            "host": None,
            "state": "waiting",
            "machine": None,
            "measured": None,
            "sizes": None,
        }
        alone, passes, images = images_and_passes(http)
        assert passes == images, "no table, no batches"
        while (found := batching(http))["state"] != "measured":
            assert found["state"] in ("waiting", "measuring")
            time.sleep(0.1)
        assert [size["size"] for size in found["sizes"]] == ["64x64", "128x128", "256x256"]
        assert found["machine"].endswith(", 1 threads") and found["measured"] == pytest.approx(time.time(), abs=3600)
        assert found["sizes"][0]["best_batch"] > 1, "sharing gains at this size on every processor so far"
        together, more_passes, more_images = images_and_passes(http)
        assert together == alone
        assert more_images - images == images
        assert more_passes - passes < images
    with serving(plans) as http:
        assert batching(http) == found, "the next server reads the table"
    with serving(plans, "--batching", "off") as http:
        assert batching(http)["state"] == "none"
        _, passes, images = images_and_passes(http)
        assert passes == images
