"""A time and a listing, for tests of the archive."""

from datetime import UTC, datetime
from pathlib import Path

from server.jobs.storage.images.archive import CLOCK_FILE

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def names(folder: Path) -> set[str]:
    """Return the names of all files but the one that keeps the time."""
    return {path.name for path in folder.iterdir()} - {CLOCK_FILE}
