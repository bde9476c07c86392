"""Jobs that one server leaves and the next one resumes."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fakes.jobs import METADATA
from fakes.worker_link import FakeLink, finished, job, play

from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import JobState, StoredImage
from server.jobs.recovery import MAX_TOTAL_ATTEMPTS
from server.jobs.storage.store import JobStore
from server.worker import messages


def test_jobs_of_a_killed_server_are_finished_replayed_or_failed_by_their_attempts(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    for name in "abc":
        store.add(job(name))
        store.start(name)
    for _ in range(MAX_TOTAL_ATTEMPTS - 1):  # a job that kills servers
        store.requeue("c")
        store.start("c")
    store.add_image("a", StoredImage(0, "image/png", b"image", METADATA))

    async def story(jobs: EmbeddedJobs, link: FakeLink) -> None:
        assert (await jobs.get("a")).state is JobState.DONE
        assert (await jobs.get("c")).error.code == "worker_lost"
        assert link.take_generated() == ["b"]  # alone, since it may have killed that server
        jobs.worker_queue.queues[0].on_message(finished("b"))

    play(story, store)


def test_orderly_stop_costs_a_running_job_no_attempt(tmp_path: Path) -> None:
    async def story(jobs: EmbeddedJobs, _link: FakeLink) -> None:
        await jobs.submit(job("a"))
        jobs.worker_queue.queues[0].on_message(messages.Started("a:0"))

    path = tmp_path / "jobs.db"
    play(story, JobStore(path))
    with closing(JobStore(path)) as store:
        stored = store.get("a")
        assert stored is not None and (stored.state, stored.attempts) == (JobState.QUEUED, 0)


def test_resumed_jobs_belong_to_the_clients_that_own_them(tmp_path: Path) -> None:
    """So a client with many jobs gets no larger share after a restart."""
    store = JobStore(tmp_path / "jobs.db")
    for name, owner in (("a1", "alice"), ("a2", "alice"), ("b1", "bob"), ("n1", None)):
        store.add(replace(job(name), owner=owner))

    async def story(_jobs: EmbeddedJobs, link: FakeLink) -> None:
        sent = {message.job: message.client for message in link.sent if isinstance(message, messages.Generate)}
        assert sent == {"a1": "alice", "a2": "alice", "b1": "bob", "n1": ""}

    play(story, store)
