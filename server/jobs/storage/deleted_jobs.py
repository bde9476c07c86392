"""Jobs that are deleted while their image files are not: a list in the database. Knows rows; no files."""

from collections.abc import Collection

from server.jobs.storage.databases.database import Database, Value, placeholders

PAGE = 100  # jobs


class DeletedJobs:
    """Deletes jobs, and remembers those whose files must still be deleted, however long that takes.

    Attributes:
        may_have_files: True if every job may have files. Otherwise only the rows of images tell.
    """

    def __init__(self, database: Database) -> None:
        self.may_have_files = False
        self._database = database

    def delete_jobs(self, which: str, value: Value) -> int:
        """Delete the jobs that a condition holds for, in the caller's transaction, and return their number."""
        has_files = "? = 1 OR EXISTS (SELECT 1 FROM images WHERE job = jobs.id AND file IS NOT NULL)"
        self._database.execute(
            f"INSERT INTO deleted_images (job) SELECT id FROM jobs WHERE {which} AND ({has_files})"
            " ON CONFLICT DO NOTHING",
            value,
            int(self.may_have_files),
        )
        return self._database.execute(f"DELETE FROM jobs WHERE {which}", value)

    def add(self, id: str) -> None:
        """List a job that is deleted already."""
        self._database.execute("INSERT INTO deleted_images (job) VALUES (?) ON CONFLICT DO NOTHING", id)

    def listed(self, after: str = "") -> list[str]:
        """Return the next PAGE jobs after an id, in the order of their ids, whose files may still be there."""
        rows = self._database.rows(f"SELECT job FROM deleted_images WHERE job > ? ORDER BY job LIMIT {PAGE}", after)
        return [row["job"] for row in rows]

    def forget(self, id: str) -> None:
        """Remove a job from the list, since its files are deleted."""
        self._database.execute("DELETE FROM deleted_images WHERE job = ?", id)

    def unknown(self, ids: Collection[str]) -> list[str]:
        """Return those of some ids that no job has."""
        if not ids:
            return []
        known = self._database.rows(f"SELECT id FROM jobs WHERE id IN ({placeholders(len(ids))})", *ids)
        return sorted(set(ids) - {row["id"] for row in known})
