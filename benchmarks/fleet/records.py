"""The database's own account of every job, by triggers, against that of the clients. Knows PostgreSQL; no processes.

A job's row shows only its last state. The triggers record every acceptance, end and stored image, so that a second one
is seen.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import psycopg

from benchmarks.fleet.accounting import Accounts

TRIGGERS = """
CREATE TABLE bench_events (job TEXT NOT NULL, kind TEXT NOT NULL, number INTEGER);
CREATE FUNCTION bench_record_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO bench_events VALUES (NEW.id, 'accepted', NULL);
    ELSIF OLD.finished IS NULL AND NEW.finished IS NOT NULL THEN
        INSERT INTO bench_events VALUES (NEW.id, 'ended', NULL);
    ELSIF OLD.finished IS NOT NULL AND (NEW.finished IS NULL OR NEW.state <> OLD.state) THEN
        INSERT INTO bench_events VALUES (NEW.id, 'ended again', NULL);
    ELSIF OLD.state = 'running' AND NEW.state = 'queued' THEN
        INSERT INTO bench_events VALUES (NEW.id, 'queued again', NULL);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION bench_record_image() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bench_events VALUES (NEW.job, 'image', NEW.number);
    RETURN NULL;
END $$;
CREATE TRIGGER bench_jobs AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION bench_record_job();
CREATE TRIGGER bench_images AFTER INSERT OR UPDATE ON images FOR EACH ROW EXECUTE FUNCTION bench_record_image();
"""


@dataclass(slots=True)
class JobRecord:
    """Events and state of a job, from the triggers and its row.

    Attributes:
        events: number of events by kind.
        images: number of times that each image was stored.
        state: in the row; None if the row was deleted.
    """

    events: Counter[str] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    key: str | None = None
    state: str | None = None
    image_count: int = 0


def install(url: str) -> None:
    """Create the triggers in the database of a fleet that has started."""
    with psycopg.connect(url) as connection:
        connection.execute(TRIGGERS)


def unfinished_jobs(url: str) -> list[str]:
    """Return the ids of the jobs without an end."""
    with psycopg.connect(url) as connection:
        return [job for (job,) in connection.execute("SELECT id FROM jobs WHERE finished IS NULL").fetchall()]


def read(url: str) -> dict[str, JobRecord]:
    """Return the records of all jobs by id."""
    found: defaultdict[str, JobRecord] = defaultdict(JobRecord)
    with psycopg.connect(url) as connection:
        for job, kind, number in connection.execute("SELECT job, kind, number FROM bench_events").fetchall():
            if kind == "image":
                found[job].images[number] += 1
            else:
                found[job].events[kind] += 1
        rows = connection.execute("SELECT id, idempotency_key, state, image_count FROM jobs").fetchall()
    for job, key, state, image_count in rows:
        found[job].key, found[job].state, found[job].image_count = key, state, image_count
    return dict(found)


def check(records: dict[str, JobRecord], accounts: Accounts) -> dict[str, int]:
    """Compare the records with the clients' accounts; return counts of what happened."""
    for job, record in records.items():
        _check_job(job, record, accounts)
    keys = Counter(record.key for record in records.values() if record.key is not None)
    for key, count in keys.items():
        if count > 1:
            accounts.break_promise("two jobs for one key", f"{key}: {count}")
    for request in accounts.requests:
        if request.job is None:
            continue
        known = records.get(request.job)
        if known is None:
            accounts.break_promise("accepted job is not in the database", request.job)
        elif request.outcome == "done" and known.state not in ("done", None):
            accounts.break_promise("another end in the database", f"{request.job}: {known.state}")
    return {
        "accepted": len(records),
        "ended": sum(record.events["ended"] > 0 for record in records.values()),
        "ended_twice": sum(record.events["ended again"] for record in records.values()),
        "images": sum(sum(record.images.values()) for record in records.values()),
        "queued_again": sum(record.events["queued again"] for record in records.values()),
    }


def _check_job(job: str, record: JobRecord, accounts: Accounts) -> None:
    if record.events["accepted"] != 1:
        accounts.break_promise("job accepted twice", job)
    if record.events["ended"] == 0:
        accounts.break_promise("job without an end", f"{job}: {record.state}")
    if record.events["ended"] > 1 or record.events["ended again"]:
        accounts.break_promise("job ended twice", f"{job}: {dict(record.events)}")
    if max(record.images.values(), default=0) > 1:
        accounts.break_promise("image stored twice", f"{job}: {dict(record.images)}")
    if record.state == "done" and sorted(record.images) != list(range(record.image_count)):
        accounts.break_promise("job is done without its images", f"{job}: {sorted(record.images)}")
