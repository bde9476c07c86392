"""Damaged rows of the database: each job fails alone, and the others go on."""

import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from fakes.jobs import generated, image
from fakes.loop import FakeLoop
from fakes.server import serving
from fakes.worker_link import FakeLink, finished, job, play
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import IdempotencyKeyReused, JobNotFound
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import JobState
from server.jobs.storage.retention import Retention
from server.jobs.storage.rows import COLUMNS
from server.jobs.storage.store import JobStore

IMAGE_COLUMNS = ("job", "number", "media_type", "metadata", "data")
NOT_UTF8 = "CAST(x'22ff22' AS TEXT)"
GUIDANCE = ('"guidance_scale": -1', '"guidance_scale": 31', '"cfg_normalization": 1e9', '"cfg_truncation": 2')
DAMAGE = {
    "request": ["'{'", "'[]'", "x'00ff'", "''", NOT_UTF8, "5", "NULL", """'{"prompt": 5}'"""]
    + [f"""'{{"prompt": "a cat", {field}}}'""" for field in GUIDANCE],
    "image_count": ["'many'", "0", "-1", "1e9", "NULL", "1000000000"],
    "format": ["'{'", """'{"quality": 50}'""", NOT_UTF8, "NULL"],
    "api": [NOT_UTF8, "x'00'", "NULL"],
    "durable": ["2", "'yes'", "NULL"],
    "created": ["'now'", "-1.0", "9e999", "NULL"],
    "deadline": ["'soon'", "9e999"],
    "state": ["'lost'", NOT_UTF8, "5", "NULL", "'done'", "'failed'"],
    "attempts": ["'x'", "-3", "NULL"],
    "error": ["'{'", "NULL", """'{"code": 5}'""", NOT_UTF8],
    "fingerprint": [NOT_UTF8, "x'05'", "NULL"],
    "idempotency_key": [NOT_UTF8, "x'01'"],
}


def damage(path: Path, table: str, column: str, value: str, which: str) -> None:
    """Set a column to a value in SQL, whatever the schema demands."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql.replace(" NOT NULL", ""), table))
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        with suppress(sqlite3.IntegrityError):  # two rows cannot have one id or key
            connection.execute(f"UPDATE {table} SET {column} = {value} WHERE {which}")


@pytest.mark.parametrize(("column", "value"), [(column, value) for column in DAMAGE for value in DAMAGE[column]])
def test_unfinished_damaged_job_fails_by_name_and_the_others_are_generated(
    path: Path, caplog: pytest.LogCaptureFixture, column: str, value: str
) -> None:
    with closing(JobStore(path)) as store:
        for name in "abc":
            store.add(job(name))
    damage(path, "jobs", column, value, "id = 'b'")

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        assert link.take_generated() == ["a", "c"]
        failed = await jobs.get("b")
        assert (failed.state, failed.error.code) == (JobState.FAILED, "job_damaged")
        assert [j.id for j in (await jobs.history(9, None, None)).jobs] == ["c", "b", "a"]
        assert await jobs.delete("b")

    play(story, JobStore(path))
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "b cannot be resumed: The record of this job in the database is damaged" in logged


@pytest.mark.parametrize("value", ["NULL", "x'00ff'", "5"])
def test_damaged_id_and_owner_hide_no_other_job(path: Path, value: str) -> None:
    with closing(JobStore(path)) as store:
        for name in "abcd":
            store.add(job(name))
        kept = generated(store)
    damage(path, "jobs", "id", value, "id = 'b'")
    damage(path, "jobs", "owner", value, "id = 'c'")

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        assert set(link.take_generated()) >= {"a", "d"}
        assert {"a", "d", kept} <= {j.id for j in (await jobs.history(9, None, None)).jobs}

    play(story, JobStore(path))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metadata", "'{'"),
        ("metadata", "NULL"),
        ("metadata", NOT_UTF8),
        ("data", "NULL"),
        ("data", "'text'"),
        ("number", "7"),
        ("number", "'first'"),
        ("job", "'elsewhere'"),
        ("media_type", "char(10)"),
    ],
)
def test_damaged_image_of_an_unfinished_job_is_generated_again(path: Path, column: str, value: str) -> None:
    with closing(JobStore(path)) as store:
        store.add(job("a", n=2))
        store.start("a")
        store.add_image("a", image(0))
        store.add_image("a", image(1))
    damage(path, "images", column, value, "number = 0")

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        assert link.take_generated() == ["a"]
        jobs.worker_queue.queues[0].on_message(finished("a", 0))
        ended, images = await jobs.wait(await jobs.get("a"))
        assert ended.state is JobState.DONE and len(images) == 2

    play(story, JobStore(path))
    with closing(JobStore(path)) as store:
        assert store.get("a").state is JobState.DONE and len(store.images("a")) == 2


@pytest.mark.parametrize("table", ["jobs", "images"])
def test_history_with_damaged_rows_is_answered_and_they_are_failed(tmp_path: Path, table: str) -> None:
    path = tmp_path / "jobs.db"
    with closing(JobStore(path)) as store:
        ids = [generated(store) for _ in range(4)]
    with closing(sqlite3.connect(path)) as connection, connection:
        if table == "jobs":
            connection.execute(f"UPDATE jobs SET request = {NOT_UTF8} WHERE id = ?", (ids[1],))
        else:
            connection.execute("DELETE FROM images WHERE job = ?", (ids[1],))
    with serving(FakeLoop(), database=path) as url:
        tasks = httpx.get(f"{url}/v1/tasks").json()["tasks"]
        assert [(task["status"], task["error_code"]) for task in tasks] == [
            ("done", None),
            ("done", None),
            ("failed", "job_damaged"),
            ("done", None),
        ]
        task = httpx.get(f"{url}/v1/task/{ids[1]}").json()
        assert "database is damaged" in task["error"]
        assert httpx.delete(f"{url}/v1/task/{ids[1]}").status_code == 200
        assert httpx.get(f"{url}/v1/task/{ids[1]}").status_code == 404


JUNK = st.one_of(
    st.just("NULL"),
    st.integers(-(2**63) + 1, 2**63 - 1).map(str),
    st.floats(allow_nan=False).map(lambda value: f"{value!r}".replace("inf", "9e999")),
    st.binary(max_size=8).map(lambda value: f"x'{value.hex()}'"),
    st.binary(max_size=8).map(lambda value: f"CAST(x'{value.hex()}' AS TEXT)"),
    st.sampled_from(["'null'", "'[]'", "'{}'", "'done'", "'failed'", "'queued'", '\'{"prompt": "\\ud800"}\'']),
)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("jobs"), st.sampled_from([*COLUMNS, "bytes"]), JUNK, st.integers(1, 6)),
            st.tuples(st.just("images"), st.sampled_from(IMAGE_COLUMNS), JUNK, st.integers(1, 6)),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=25, deadline=None)
def test_random_damage_stops_neither_the_start_nor_a_read(changes: list[tuple[str, str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        with closing(JobStore(path)) as store:
            for _ in range(4):
                generated(store, fingerprint="f", idempotency_key=None)
            for name in ("a", "b", "c"):
                store.add(job(name, key=name, n=2))
                store.start(name)
                store.add_image(name, image(0))
        for table, column, value, row in changes:
            damage(path, table, column, value, f"rowid = {row}")
        touched = {row for table, _, _, row in changes if table == "jobs"}
        if any(column == "bytes" for _, column, _, _ in changes):  # what seems too large is pruned
            touched = set(range(1, 8))

        async def story(jobs: EmbeddedJobs, _: FakeLink) -> None:
            found = (await jobs.history(99, None, None)).jobs
            assert set(range(1, 8)) - touched <= {j.sequence for j in found}
            for shown in found:
                shown.id.encode()
                await jobs.get(shown.id)
                await jobs.metadata(shown.id)
                await jobs.image(shown.id, 0)
                assert (await jobs.progress(shown)).steps >= 0
                if shown.state.is_final:
                    with suppress(JobNotFound):  # its id was damaged
                        await jobs.wait(shown)
            for name in "abc":
                with suppress(IdempotencyKeyReused):  # its fingerprint was damaged
                    await jobs.submit(job(f"{name} again", key=name, n=2))
            assert 7 in touched or (await jobs.get("c")).error is None
            for live in list(jobs._tracker.unfinished):
                await jobs.cancel(live.job.id)
            await jobs._async_store.flush()
            for shown in (await jobs.history(99, None, None)).jobs:
                await jobs.delete(shown.id)

        store = JobStore(path)
        play(story, store)
        with closing(JobStore(path)) as store:
            while store.prune(Retention(max_bytes=0)):
                pass
