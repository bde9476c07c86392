"""Images of a fleet in a folder or in S3: written by a worker host, served and deleted by every API replica."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fakes.archive import names
from fakes.fleet import hosting, new_options, replica
from fakes.images import FakeImages
from fakes.jobs_mode import FleetServices
from fakes.loop import MANIFEST, FakeLoop
from fakes.server import HOSTS, decoded, running
from fakes.services import PostgreSql
from fakes.waiting import wait_until

from server.api.access import AccessPolicy
from server.app import AppOptions
from server.http.host_names import HostNames
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.jobs.storage.images.image_store import ImageStore, open_image_store

APP = AppOptions(AccessPolicy(shared_history=True), hosts=HostNames(public=HOSTS))


@pytest.fixture
def services(redis_url: str, postgres: PostgreSql) -> FleetServices:
    return FleetServices(redis_url, postgres.fresh_url)


def opened(url: str) -> ImageStore:
    images = asyncio.run(open_image_store(url))
    assert images is not None
    return images


def generate(url: str, seed: int) -> str:
    return httpx.post(f"{url}/v1/generate", json={"prompt": "a cat", "seed": seed}).json()["task_id"]


def status(url: str, task: str) -> str:
    return httpx.get(f"{url}/v1/task/{task}").json()["status"]


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_image_is_served_and_deleted_by_every_replica(
    place: str, services: FleetServices, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/images" if place == "folder" else request.getfixturevalue("s3_url")
    fleet, images = new_options(services), opened(url)
    with (
        hosting(FakeLoop(), fleet, MANIFEST, opened(url)),
        running(replica(fleet, MANIFEST, images=images), APP) as first,
        running(replica(fleet, MANIFEST, images=opened(url)), APP) as second,
    ):
        task = generate(first, 7)
        wait_until(lambda: status(second, task) == "done")
        for replica_url in (first, second):
            (path,) = httpx.get(f"{replica_url}/v1/task/{task}").json()["result"]["paths"]
            assert path.startswith(replica_url)
            assert decoded(httpx.get(path).content)[0, 0, 0] == 7
        rows = FleetStore(fleet.database)
        (image,) = rows.images(task)
        rows.close()
        assert image.data == b"" and image.file is not None
        assert httpx.delete(f"{second}/v1/task/{task}").status_code == 200
        assert httpx.get(path).status_code == 404
        if place == "folder":
            wait_until(lambda: names(tmp_path / "images") == set())
        else:
            wait_until(lambda: asyncio.run(images.get(task, image.file.name)) is None)


def test_job_of_a_fleet_ends_when_an_image_store_that_was_away_is_back(services: FleetServices) -> None:
    fleet, images = new_options(services), FakeImages()
    with (
        hosting(FakeLoop(), fleet, MANIFEST, images),
        running(replica(fleet, MANIFEST, images=images), APP) as url,
    ):
        images.is_away = True
        task = generate(url, 7)
        wait_until(lambda: images.puts >= 2)
        assert status(url, task) == "running"
        images.is_away = False
        wait_until(lambda: status(url, task) == "done")
        (path,) = httpx.get(f"{url}/v1/task/{task}").json()["result"]["paths"]
        images.is_away = True
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(httpx.get, path, timeout=20)
            wait_until(lambda: images.gets >= 2)
            images.is_away = False
            assert decoded(asked.result().content)[0, 0, 0] == 7


def test_host_claims_nothing_while_its_finished_images_cannot_be_stored(
    services: FleetServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.storage.async_store.MAX_REFUSED_WRITES", 0)
    monkeypatch.setattr("server.jobs.storage.images.image_files.MAX_RETRY_DELAY", 0.5)
    fleet, images = new_options(services), FakeImages()
    with (
        hosting(FakeLoop(), fleet, MANIFEST, images),
        running(replica(fleet, MANIFEST, images=images), APP) as url,
    ):
        images.is_away = True
        first = generate(url, 1)
        wait_until(lambda: images.puts >= 1)
        second = generate(url, 2)
        wait_until(lambda: images.puts >= 5)  # two seconds, in which the host would claim it
        assert (status(url, first), status(url, second)) == ("running", "pending")
        images.is_away = False
        wait_until(lambda: status(url, second) == "done")
        assert status(url, first) == "done"
