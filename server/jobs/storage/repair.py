"""Repair of damaged rows of unfinished jobs in SQLite, so that each damages no other. Knows rows; no workers."""

import logging
from dataclasses import replace

from server.jobs.job import Job
from server.jobs.storage.databases.sqlite import SqliteDatabase
from server.jobs.storage.rows import COLUMNS, SIZE_WITH_IMAGES, image_of_row, row_of_job

log = logging.getLogger(__name__)


def repair(database: SqliteDatabase, job: Job) -> None:
    """End an unfinished job whose row is damaged; of another, delete the damaged images. In a transaction.

    Args:
        job: as `rows.job_of_row` read it: with an error if its row is damaged.
    """
    if job.error is None:
        _delete_damaged_images(database, job)
        return
    log.error("%s cannot be resumed: %s", job.id, job.error.message)
    columns = ", ".join(f"{name} = ?" for name in COLUMNS)
    values = row_of_job(replace(job, finished=max(database.now(), job.created)))
    database.execute(f"UPDATE jobs SET {columns}, bytes = {SIZE_WITH_IMAGES} WHERE sequence = ?", *values, job.sequence)


def _delete_damaged_images(database: SqliteDatabase, job: Job) -> None:
    """Delete the images that cannot be used, so that they are generated again."""
    for row in database.rows("SELECT rowid, * FROM images WHERE job = ?", job.id):
        image = image_of_row(row)
        if image is None or image.index >= job.image_count:
            log.error("an image of %s is damaged and will be generated again", job.id)
            database.execute("DELETE FROM images WHERE rowid = ?", row["rowid"])
