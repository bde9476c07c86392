"""A time and a listing, for tests of the archive."""

from datetime import UTC, datetime
from pathlib import Path

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
