"""A moment and a look into the folder, for the archive's tests."""

from datetime import UTC, datetime
from pathlib import Path

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
