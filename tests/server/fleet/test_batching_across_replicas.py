"""Images that two API replicas accept share forward passes on one worker host, with real engines."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.processes import PYTHONPATH, ROOT

from engine.plan.directory import read, resolve
from engine.plan.manifest import Manifest
from engine.processor import processor_name
from engine.request import ImageFormat, ImageRequest
from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.table_files import TableFile, TableKey
from server.fleet.fleet_options import FleetOptions
from server.fleet.replica.service import FleetJobs
from server.jobs.job import Job, new_id
from server.jobs.storage.fleet.fleet_store import FleetStore

READY = re.compile(r"zimage-worker: ready, probes on (http://127\.0\.0\.1:\d+), in \d+\.\d\d s\n")
THREADS = 1
IMAGES = 6  # of each replica
GAIN = BatchTable("made up", (PassTimes(128, 128, (1.0, 1.1, 1.2, 1.3)),))  # lets four images share a pass


@pytest.fixture
def batching(engines: Path, tmp_path: Path) -> Path:
    """Plans whose table lets images share passes."""
    shutil.copytree(engines, tmp_path / "engines", symlinks=True)
    plans = resolve(tmp_path / "engines")
    manifest = read(plans, verify=False)
    profiles = tuple(sorted(profile.name for profile in manifest.profiles))
    TableFile(plans, TableKey(processor_name(), manifest.plan_id, "onnx", THREADS, profiles)).write(GAIN)
    return tmp_path / "engines"


@contextmanager
def worker_command(engines: Path, options: FleetOptions) -> Iterator[str]:
    """Run zimage-worker, and yield the URL of its probes."""
    command = [sys.executable, "-m", "server.worker_cli", "--engines", str(engines), "--metrics-port", "0"]
    environment = {
        "PYTHONPATH": PYTHONPATH,
        "ZIMAGE_BROKER": options.broker,
        "ZIMAGE_DATABASE": options.database,
        "ZIMAGE_FLEET": options.name,
        "ZIMAGE_THREADS": str(THREADS),
    }
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            match = READY.fullmatch(line)
            assert match, line
            yield match[1]
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def batches(url: str) -> tuple[float, float]:
    """Return the forward passes of a host, and the images in them."""
    values = dict(
        line.split(" ")[:2]
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("zimage_forward_batch_size_")
    )
    found = [[float(value) for name, value in values.items() if f"_{part}" in name] for part in ("count", "sum")]
    return sum(found[0]), sum(found[1])


def job(manifest: Manifest, seed: int, client: str) -> Job:
    return Job(
        id=new_id(),
        request=ImageRequest("a red circle", 128, 128, seed=seed),
        image_count=1,
        format=ImageFormat(),
        api="test",
        durable=True,
        fingerprint="f",
        created=0.0,
        client=client,
        model=manifest.model.name,
        cost=128 * 128 * 8.0,
    )


async def drawn(replica: FleetJobs, jobs: list[Job]) -> list[bytes]:
    """Submit jobs at once, and return their images."""
    accepted = await asyncio.gather(*map(replica.submit, jobs))
    ended = await asyncio.gather(*map(replica.wait, accepted))
    return [images[0].data for _, images in ended]


def test_images_of_two_replicas_share_passes_and_are_what_they_are_alone(
    batching: Path, redis_url: str, postgres_url: str
) -> None:
    manifest = read(resolve(batching), verify=False)
    options = FleetOptions(redis_url, postgres_url, "batching")

    async def run(url: str) -> None:
        replicas = [FleetJobs(FleetStore(postgres_url), manifest, options) for _ in range(2)]
        for replica in replicas:
            await replica.start()
        try:
            alone = [await drawn(replicas[0], [job(manifest, seed, "alone")]) for seed in range(2 * IMAGES)]
            passes, images = batches(url)
            assert passes == images > 0
            jobs = [
                [job(manifest, seed, f"client {first}") for seed in range(first, 2 * IMAGES, 2)] for first in (0, 1)
            ]
            even, odd = await asyncio.gather(*map(drawn, replicas, jobs))
            more_passes, more_images = batches(url)
            shared = (more_images - images) / (more_passes - passes)
            assert shared > 2, shared  # images in a pass, on average
            assert [even, odd] == [[image for (image,) in alone[first::2]] for first in (0, 1)]
        finally:
            for replica in replicas:
                await replica.stop(5)

    with worker_command(batching, options) as url:
        asyncio.run(asyncio.wait_for(run(url), 300))
