"""Packed images that jobs begin with, as rows of the database. Knows bytes; not what they show."""

from server.jobs.storage.databases.database import Database
from server.worker.packed_image import PackedImage


class StoredInitImages:
    """Packed images by job. A job's image is deleted with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job_id: str, image: PackedImage) -> None:
        """Store the image of a job that is in the database at the end of the transaction. The first one stays."""
        self._database.execute(
            "INSERT INTO init_images (job, unpacked_bytes, data) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            job_id,
            image.unpacked_bytes,
            image.data,
        )

    def delete(self, job_id: str) -> None:
        self._database.execute("DELETE FROM init_images WHERE job = ?", job_id)

    def get(self, job_id: str) -> PackedImage | None:
        """Return the packed image that a job begins with; None if there is none, or its row is damaged."""
        rows = self._database.rows("SELECT data, unpacked_bytes FROM init_images WHERE job = ?", job_id)
        is_intact = rows and isinstance(rows[0]["data"], bytes) and isinstance(rows[0]["unpacked_bytes"], int)
        return PackedImage(rows[0]["data"], rows[0]["unpacked_bytes"]) if is_intact else None

    def unpacked_bytes(self) -> dict[str, int]:
        """Return the bytes of the images that unfinished jobs begin with, unpacked, by job."""
        unfinished = "SELECT id FROM jobs WHERE finished IS NULL"
        rows = self._database.rows(f"SELECT job, unpacked_bytes FROM init_images WHERE job IN ({unfinished})")
        return {row["job"]: row["unpacked_bytes"] for row in rows if isinstance(row["unpacked_bytes"], int)}
