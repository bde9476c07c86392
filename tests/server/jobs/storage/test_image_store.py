"""Image stores: a folder and a real S3 server, and what they answer when they fail."""

import asyncio
import os
import resource
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.archive import names
from fakes.services import SeaweedS3

from benchmarks.services.service import free_port
from server.errors import StoreUnavailable
from server.jobs.storage.images.image_store import ImageStore, check_url, open_image_store
from server.jobs.storage.images.s3_images import S3Images

JOB = "job_0123"


def run(url: str, story: Callable[[ImageStore], Awaitable[None]]) -> None:
    async def told() -> None:
        images = await open_image_store(url)
        assert images is not None
        await story(images)

    asyncio.run(asyncio.wait_for(told(), 60))


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty image store."""
    return f"file://{tmp_path}/images" if request.param == "folder" else request.getfixturevalue("s3_url")


def test_file_is_read_as_it_was_written_and_deleted_with_its_job(url: str) -> None:
    async def story(images: ImageStore) -> None:
        large = os.urandom(8 << 20)  # more than a part of an upload in parts
        await images.put(JOB, "0-a.png", "image/png", large)
        await images.put(JOB, "1-b.png", "image/png", b"small")
        await images.put(f"{JOB}4", "0-a.png", "image/png", b"another job's")
        assert await images.get(JOB, "0-a.png") == large
        assert await images.get(JOB, "2-c.png") is None
        await images.delete(JOB)
        assert await images.get(JOB, "0-a.png") is None
        assert await images.get(JOB, "1-b.png") is None
        assert await images.get(f"{JOB}4", "0-a.png") == b"another job's"
        await images.delete(JOB)  # again: there is nothing to delete

    run(url, story)


def test_jobs_without_new_files_are_found(url: str) -> None:
    async def story(images: ImageStore) -> None:
        for job in ("job_1", "job_2"):
            await images.put(job, "0-a.png", "image/png", b"x")
        before, after = time.time() - 60, time.time() + 60
        assert [jobs async for jobs in images.jobs_before(before) if jobs] == []
        assert set().union(*[jobs async for jobs in images.jobs_before(after)]) >= {"job_1", "job_2"}

    run(url, story)


def test_many_writes_at_once_do_not_hold_up_the_event_loop(url: str) -> None:
    async def story(images: ImageStore) -> None:
        data, turns = bytes(4 << 20), 0

        async def spin() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        spinning = asyncio.create_task(spin())
        await asyncio.gather(*(images.put(JOB, f"{index}-a.png", "image/png", data) for index in range(8)))
        read = await asyncio.gather(*(images.get(JOB, f"{index}-a.png") for index in range(8)))
        spinning.cancel()
        assert [len(data or b"") for data in read] == [4 << 20] * 8
        assert turns > 200  # 16 calls that block would leave some 16 turns

    run(url, story)


@pytest.mark.parametrize("name", ["../0.png", "", "..", "a/b", ".hidden", "/etc/passwd"])
def test_folder_takes_no_name_that_leaves_it(name: str, tmp_path: Path) -> None:
    async def story(images: ImageStore) -> None:
        for call in (
            images.put(name, "0.png", "image/png", b""),
            images.put(JOB, name, "image/png", b""),
            images.get(name, "0.png"),
            images.get(JOB, name),
            images.delete(name),
        ):
            with pytest.raises(ValueError, match="expected a name"):
                await call

    run(f"file://{tmp_path}/images", story)


def test_folder_is_private_and_has_no_partial_files(tmp_path: Path) -> None:
    async def story(images: ImageStore) -> None:
        await images.put(JOB, "0-a.png", "image/png", b"x")

    run(f"file://{tmp_path}/images", story)
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700
    assert names(tmp_path / "images") == {JOB}
    assert names(tmp_path / "images" / JOB) == {"0-a.png"}


@contextmanager
def no_large_files() -> Iterator[None]:
    """Let writes past 1 MiB of a file fail, as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_folder_refuses_a_file_and_keeps_no_part_of_it(tmp_path: Path) -> None:
    async def story(images: ImageStore) -> None:
        with no_large_files(), pytest.raises(StoreUnavailable, match="File too large"):
            await images.put(JOB, "0-a.png", "image/png", bytes(2 << 20))
        assert names(tmp_path / "images" / JOB) == set()
        await images.put(JOB, "0-a.png", "image/png", bytes(2 << 20))

    run(f"file://{tmp_path}/images", story)


def test_folder_beside_an_unmounted_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="No such file or directory"):
        asyncio.run(open_image_store(f"file://{tmp_path}/share/images"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/srv/images", "must be file:///FOLDER or s3://BUCKET"),
        ("file://srv/images", "must be file:///FOLDER"),
        ("file:///", "must be file:///FOLDER"),
        ("s3://", "must be s3://BUCKET"),
        ("s3://bucket?endpint=http://minio:9000", "must be s3://BUCKET"),
        ("s3://bucket?endpoint=minio:9000", "an endpoint such as http://minio:9000"),
        ("s3://key:secret@bucket", "must not have credentials"),
        ("s3://bucket?endpoint=http://key:secret@minio:9000", "must not have credentials"),
        ("gs://bucket", "must be file:///FOLDER or s3://BUCKET"),
    ],
)
def test_url_of_another_form_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        check_url(url)
    assert "secret" not in str(error.value)


def test_wrong_key_and_missing_key_are_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreUnavailable, match=r"403.*its key must be allowed to list, read, write and delete"):
        asyncio.run(open_image_store(s3_url))


def test_s3_that_hangs_is_unavailable_and_then_works_again(
    s3: SeaweedS3, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.storage.images.s3_images.REQUEST_TIMEOUT", timedelta(seconds=2))
    monkeypatch.setattr("server.jobs.storage.images.s3_images.RETRY_TIMEOUT", timedelta(seconds=2))

    async def story(images: ImageStore) -> None:
        await images.put(JOB, "0-a.png", "image/png", b"x")
        s3.pause()
        try:
            with pytest.raises(StoreUnavailable, match="check that the service runs and can be reached"):
                await images.put(JOB, "1-b.png", "image/png", b"x")
        finally:
            s3.resume()
        assert await images.get(JOB, "0-a.png") == b"x"

    run(s3_url, story)


def test_connection_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable, match=f"{endpoint}.*check that the service runs and can be reached"):
        asyncio.run(S3Images(f"s3://bucket?endpoint={endpoint}").get(JOB, "0-a.png"))


class Refusing(BaseHTTPRequestHandler):
    """An S3 server that answers 503 to everything."""

    requests = 0

    def do_PUT(self) -> None:
        type(self).requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_service_unavailable_is_tried_again_before_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = S3Images(f"s3://bucket/images?endpoint=http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreUnavailable, match="503") as error:
            asyncio.run(images.put(JOB, "0-a.png", "image/png", b"x"))
        server.shutdown()
    assert Refusing.requests == 4
    assert "very-secret" not in str(error.value)
