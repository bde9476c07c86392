"""Images outside the database: when rows are written, what a store that is away does to jobs, and deletion."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from fakes.images import FakeImages
from fakes.jobs import Clock, generated, image, job

from server.errors import StoreUnavailable
from server.jobs.job import JobState
from server.jobs.storage.async_store import MAX_REFUSED_WRITES, AsyncStore
from server.jobs.storage.images.image_deletion import ImageDeletion
from server.jobs.storage.retention import DAY, Retention
from server.jobs.storage.store import JobStore

Story = Callable[[AsyncStore, FakeImages], Awaitable[None]]


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.storage.images.image_files.RETRY_DELAY", 0.01)
    monkeypatch.setattr("server.jobs.storage.images.image_files.MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr("server.jobs.storage.images.image_deletion.DELETE_EVERY", 0.02)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, path: Path) -> Path | str:
    """A new database of each kind."""
    return path if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def play(database: Path | str, story: Story, images: FakeImages | None = None) -> None:
    async def run() -> None:
        store = AsyncStore(JobStore(database), Retention(max_bytes=1 << 30), images or FakeImages())
        store.start()
        try:
            await story(store, store._files._images)
        finally:
            store.close()
            await store.wait_closed()

    asyncio.run(asyncio.wait_for(run(), 20))


async def started(store: AsyncStore, count: int = 1) -> str:
    id = (await store.add(job(count))).id
    store.write_later(partial(store.store.start, id))
    return id


async def finished(store: AsyncStore, data: bytes = b"data") -> str:
    """Return the id of a job whose one image is stored."""
    id = await started(store)
    store.add_image(id, image(data=data))
    await store.finish(id)
    return id


async def state(store: AsyncStore, id: str) -> JobState:
    found = await store.call(store.store.get, id)
    assert found is not None
    return found.state


async def settled(store: AsyncStore, images: FakeImages, attempts: int) -> None:
    """Wait until so many more attempts to store a file were made, and the writes to the database are done."""
    until = images.puts + attempts
    while images.puts < until or store._writes.pending:
        await asyncio.sleep(0.005)


async def deleted(store: AsyncStore, images: FakeImages) -> None:
    """Wait until no deleted job may have files."""
    while images.files or await store.call(store.store.deleted.listed):
        await asyncio.sleep(0.01)


def test_bytes_are_in_the_image_store_and_not_in_the_database(database: Path | str) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store, 2)
        for index in range(2):
            store.add_image(id, image(index, b"bytes %d" % index))
        await store.finish(id)
        assert sorted(images.files[id].values()) == [b"bytes 0", b"bytes 1"]
        assert [found.data for found in store.store.images(id)] == [b"", b""]
        assert [found.data for found in await store.images(id)] == [b"bytes 0", b"bytes 1"]
        found = await store.image(id, 1)
        assert found is not None and (found.data, found.metadata) == (b"bytes 1", image().metadata)
        assert await store.image(id, 2) is None
        page = await store.call(store.store.history, 9)
        assert [found.state for found in page.jobs] == [JobState.DONE]  # complete, though its rows have no bytes

    play(database, story)


def test_bytes_of_files_count_for_the_limit_of_the_history(database: Path | str) -> None:
    async def story(store: AsyncStore, _: FakeImages) -> None:
        first, second = [await finished(store, bytes(1 << 20)) for _ in range(2)]
        assert store.store.bytes_since_prune > 2 << 20
        assert await store.call(store.store.prune, Retention(max_bytes=3 << 19)) == 1
        assert await store.call(store.store.get, first) is None
        assert await state(store, second) is JobState.DONE

    play(database, story)


@pytest.mark.parametrize("error", [StoreUnavailable, RuntimeError])
def test_job_ends_only_when_its_images_are_stored(path: Path, error: type[Exception]) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store)
        images.is_away, images.error = True, error
        saved = store.add_image(id, image())
        ended: list[str] = []
        finished = store.finish(id, partial(ended.append, id))
        await settled(store, images, attempts=3)
        assert await state(store, id) is JobState.RUNNING
        assert not (saved.done() or finished.done() or ended)
        assert store.pending_writes == 2
        images.is_away = False
        await store.flush()
        assert await state(store, id) is JobState.DONE
        assert ended == [id]
        assert len(images.files[id]) == 1

    play(path, story)


def test_other_jobs_go_on_while_the_image_store_is_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.storage.async_store.FLUSH_TIMEOUT", 0.1)

    async def story(store: AsyncStore, images: FakeImages) -> None:
        stuck = await started(store)
        images.is_away = True
        store.add_image(stuck, image())
        store.finish(stuck)
        other = await started(store)
        await store.end(other, partial(store.store.cancel, other))
        assert await state(store, other) is JobState.CANCELLED
        with pytest.raises(StoreUnavailable, match="earlier writes were not done"):
            await store.flush()

    play(path, story)


def test_cancelled_job_ends_at_once_and_drops_its_image(path: Path) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store)
        images.is_away = True
        store.add_image(id, image())
        await settled(store, images, attempts=1)
        await store.end(id, partial(store.store.cancel, id))
        assert await state(store, id) is JobState.CANCELLED
        await asyncio.sleep(0)
        assert store.pending_writes == 0
        images.is_away = False
        await asyncio.sleep(0.05)
        assert images.files == {}

    play(path, story)


def test_writes_go_on_after_a_job_ends_whose_image_is_on_its_way_to_the_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.storage.write_queue.BATCH_DELAY", 0.1)

    async def story(store: AsyncStore, _: FakeImages) -> None:
        id = await started(store)
        await store.flush()
        store.add_image(id, image())
        while not store._writes.pending:  # the file is there, and its row is not
            await asyncio.sleep(0)
        await store.end(id, partial(store.store.cancel, id))
        assert await state(store, id) is JobState.CANCELLED
        assert await state(store, await finished(store)) is JobState.DONE

    play(path, story)


def test_jobs_are_refused_while_too_many_images_wait_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.storage.async_store.MAX_REFUSED_WRITES", 4)

    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store, 5)
        images.is_away = True
        for index in range(5):
            store.add_image(id, image(index))
        await settled(store, images, attempts=5)
        with pytest.raises(StoreUnavailable, match="5 images wait for their store"):
            await store.add(job())
        images.is_away = False
        await store.flush()
        assert await store.add(job())

    assert MAX_REFUSED_WRITES > 4
    play(path, story)


def test_read_fails_while_the_image_store_is_away(path: Path) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await finished(store)
        images.is_away = True
        with pytest.raises(StoreUnavailable, match="away"):
            await store.image(id, 0)

    play(path, story)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_file_is_no_image_and_is_named(damage: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await finished(store)
        (name,) = images.files[id]
        images.files[id] = {} if damage == "missing" else {name: b"da"}
        assert await store.image(id, 0) is None
        assert await store.images(id) == []
        assert f"image 0 of {id} is lost: its file {name} is" in caplog.text

    play(path, story)


def test_image_generated_again_takes_the_place_of_a_lost_file(database: Path | str) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store, 2)
        await store.add_image(id, image(0))
        images.files[id].clear()
        await store.add_image(id, image(0, b"again"))
        store.add_image(id, image(1))
        await store.finish(id)
        assert [found.data for found in await store.images(id)] == [b"again", b"data"]

    play(database, story)


def test_images_from_before_the_image_store_are_still_served(database: Path | str) -> None:
    with closing(JobStore(database)) as before:
        id = generated(before, b"in the database")

    async def story(store: AsyncStore, _: FakeImages) -> None:
        found = await store.image(id, 0)
        assert found is not None and found.data == b"in the database"

    play(database, story)


def test_files_are_deleted_after_their_job_even_if_the_image_store_was_away(database: Path | str) -> None:
    images = FakeImages()

    async def delete(store: AsyncStore, _: FakeImages) -> None:
        ids = [await finished(store) for _ in range(2)]
        images.is_away = True
        assert await store.delete(ids[0])
        assert await store.call(store.store.prune, Retention(max_age=-1)) == 1
        await asyncio.sleep(0.05)
        assert len(images.files) == 2

    async def restart(store: AsyncStore, _: FakeImages) -> None:
        images.is_away = False
        await deleted(store, images)

    play(database, delete, images)
    play(database, restart, images)


def test_file_that_arrives_after_its_job_was_deleted_is_deleted(database: Path | str) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store)
        images.is_full = True
        store.add_image(id, image())
        await settled(store, images, attempts=1)
        await store.call(store.store.cancel, id)
        assert await store.delete(id)
        await deleted(store, images)
        images.is_full = False
        await store.flush()
        await deleted(store, images)

    play(database, story)


def test_file_that_arrives_after_the_end_of_its_job_is_deleted_with_it(database: Path | str) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        id = await started(store)
        images.is_full = True
        store.add_image(id, image())
        await settled(store, images, attempts=1)
        await store.call(store.store.cancel, id)
        images.is_full = False
        await store.flush()
        assert len(images.files[id]) == 1
        assert await store.images(id) == []
        assert await store.delete(id)
        await deleted(store, images)

    play(database, story)


def test_sweep_deletes_old_files_of_unknown_jobs_only(path: Path) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        known = await finished(store)
        images.files["job_of_nobody"] = {"0-a.png": b"x"}
        images.files["lost+found"] = {"file": b"not of a job"}
        clock = Clock()
        deletion = ImageDeletion(images, store.store.deleted, store.call, 7 * DAY, clock)
        assert await deletion.sweep() == 1
        assert images.asked_before == clock.now - 8 * DAY
        await deletion.delete()
        assert set(images.files) == {known, "lost+found"}

    play(path, story)


def test_job_whose_files_cannot_be_deleted_holds_up_no_other(
    database: Path | str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(store: AsyncStore, images: FakeImages) -> None:
        first, *others = sorted([await finished(store) for _ in range(3)])
        images.stuck = {first}
        for id in (first, *others):
            assert await store.delete(id)
        while len(images.files) > 1:
            await asyncio.sleep(0.01)
        attempts = images.deletes
        while images.deletes < attempts + 3:
            await asyncio.sleep(0.01)
        assert set(images.files) == {first}
        assert caplog.text.count(f"the files of 1 deleted jobs, such as {first}, are deleted later") == 1
        images.stuck.clear()
        await deleted(store, images)

    play(database, story)


def test_jobs_behind_many_whose_files_cannot_be_deleted_are_reached(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.storage.images.image_deletion.MAX_REFUSED", 2)

    async def story(store: AsyncStore, images: FakeImages) -> None:
        *first, last = sorted([await finished(store) for _ in range(4)])
        images.stuck = set(first)
        for id in (*first, last):
            assert await store.delete(id)
        while last in images.files:
            await asyncio.sleep(0.01)
        assert set(images.files) == set(first)

    play(path, story)
