"""Pages of the history of jobs. Knows queries; not what changes a job."""

from dataclasses import dataclass

from engine.images.metadata import ImageMetadata
from server.jobs.job import Job
from server.jobs.storage.databases.database import Database, Value
from server.jobs.storage.rows import JOB_COLUMNS, SIZE, STORED, job_of_row, metadata_of

PAGE_BYTES = 1 << 20  # of the requests of one page


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Jobs, newest first.

    Attributes:
        metadata: of the images so far, by job.
        has_more: True if there are older jobs.
    """

    jobs: list[Job]
    metadata: dict[str, list[ImageMetadata]]
    has_more: bool


def read_page(database: Database, which: str, values: tuple[Value, ...], end: int, limit: int) -> HistoryPage:
    """Return the newest jobs before a sequence that a condition holds for.

    Args:
        limit: number of jobs at most; fewer, but one at least, if their requests have more than PAGE_BYTES.
    """
    older = f"FROM jobs WHERE {which} AND sequence < ?"
    newest = f"SELECT sequence, {SIZE} AS size {older} ORDER BY sequence DESC LIMIT ?"
    up_to = f"SELECT sequence, sum(size) OVER (ORDER BY sequence DESC) - size AS newer FROM ({newest}) AS newest"
    fitting = f"SELECT sequence FROM ({up_to}) AS up_to WHERE newer < {PAGE_BYTES}"
    jobs = read_jobs(database, f"WHERE sequence IN ({fitting}) ORDER BY sequence DESC", *values, end, limit)
    next_one = f"SELECT sequence {older} ORDER BY sequence DESC LIMIT 1"  # in order, so that an index is used
    has_more = bool(jobs) and bool(database.rows(next_one, *values, jobs[-1].sequence))
    return HistoryPage(jobs, {job.id: read_metadata(database, job.id) for job in jobs}, has_more)


def read_jobs(database: Database, which: str, *values: Value) -> list[Job]:
    return [job_of_row(row) for row in database.rows(f"SELECT {JOB_COLUMNS}, {STORED} FROM jobs {which}", *values)]


def read_metadata(database: Database, id: str) -> list[ImageMetadata]:
    """Return the metadata of a job's images so far, by index, without reading the images."""
    rows = database.rows("SELECT metadata FROM images WHERE job = ? ORDER BY number", id)
    return [metadata for row in rows if (metadata := metadata_of(row["metadata"]))]
