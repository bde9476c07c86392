"""Pruning of the archive: expired images are deleted, files of others are not."""

import math
import os
from datetime import timedelta
from pathlib import Path

import pytest
from fakes.archive import NOON, names
from fakes.jobs import Clock

from server.jobs.storage.images.archive import Archive
from server.jobs.storage.retention import DAY, Retention


def save(archive: Archive, *, age: float = 0, size: int = 10, number: int = 0) -> Path:
    return archive.save(b"x" * size, ".png", NOON - timedelta(seconds=age), f"{number:08x}")


def test_images_older_than_max_age_are_deleted(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100))
    old, edge, new = (save(archive, age=age) for age in (101, 100, 0))
    assert archive.prune(NOON) == 1
    assert names(folder) == {edge.name, new.name}
    assert not old.exists()
    assert archive.prune(NOON) == 0


def test_default_keeps_images_for_a_week(folder: Path) -> None:
    save(Archive(folder), age=7 * DAY + 1)
    kept = [save(Archive(folder), age=age) for age in (7 * DAY - 1, 0)]
    assert Archive(folder, Retention(max_age=math.inf)).prune(NOON) == 0
    assert Archive(folder).prune(NOON) == 1
    assert names(folder) == {path.name for path in kept}


def test_age_is_taken_from_the_name_not_from_the_file(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100))
    copied, touched = save(archive, age=200), save(archive)
    os.utime(copied, (NOON.timestamp(), NOON.timestamp()))
    os.utime(touched, (0, 0))
    assert archive.prune(NOON) == 1
    assert names(folder) == {touched.name}


def test_oldest_images_are_deleted_until_the_rest_fits(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100, max_bytes=25))
    save(archive, age=1000, size=1000)  # expired, so its bytes do not count
    paths = [save(archive, age=age, size=10) for age in (50, 10, 40, 20)]
    assert archive.prune(NOON) == 3
    assert names(folder) == {paths[1].name, paths[3].name}
    assert archive.prune(NOON) == 0


def test_limit_below_one_image_empties_the_folder(folder: Path) -> None:
    archive = Archive(folder, Retention(max_bytes=9))
    save(archive, number=1)
    assert archive.prune(NOON) == 1
    assert names(folder) == set()


def test_images_that_just_fit_are_kept(folder: Path) -> None:
    archive = Archive(folder, Retention(max_bytes=20))
    save(archive, number=1)
    save(archive, number=2)
    assert archive.prune(NOON) == 0


FOREIGN = [
    "notes.txt",
    "generated_20200101_000000_0123abcd.png.bak",
    "generated_20200101_000000_0123abcd.gif",
    "generated_20200101_000000_0123ABCD.png",
    "generated_20201301_000000_0123abcd.png",  # no such month
    "generated_20200101_000000_0123abcd",
    "generated_20200101_000000_0123abcd.png.part",
    ".generated_20200101_000000_0123abcd.png",
    "my_generated_20200101_000000_0123abcd.png",
    "generated_20200101_000000_0123abcd.png\n",
    "generated_２０200101_000000_0123abcd.png",
]


def test_files_of_others_are_not_deleted(folder: Path, tmp_path: Path) -> None:
    archive = Archive(folder, Retention(max_age=0, max_bytes=0))
    save(archive, age=10)
    for name in FOREIGN:
        (folder / name).write_bytes(b"precious")
        os.utime(folder / name, (0, 0))
    (folder / "generated_20200101_000000_00000001.png").mkdir()
    target = tmp_path / "generated_20200101_000000_00000002.png"
    target.write_bytes(b"precious")
    (folder / target.name).symlink_to(target)
    below = folder / "below"
    below.mkdir()
    (below / target.name).write_bytes(b"precious")
    before = names(folder)
    assert archive.prune(NOON) == 1
    assert names(folder) == before - {"generated_20261122_115950_00000000.png"}
    assert target.read_bytes() == (below / target.name).read_bytes() == b"precious"
    assert (folder / target.name).is_symlink()


def test_files_of_others_do_not_count_against_the_limit(folder: Path, tmp_path: Path) -> None:
    archive = Archive(folder, Retention(max_bytes=10))
    kept = save(archive)
    (folder / "huge.bin").write_bytes(bytes(10_000))
    (tmp_path / "huge.bin").write_bytes(bytes(10_000))
    (folder / "generated_20200101_000000_00000002.png").symlink_to(tmp_path / "huge.bin")
    assert archive.prune(NOON) == 0
    assert kept.exists()


def test_old_partial_files_are_deleted_and_new_ones_kept(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=math.inf, max_bytes=0))
    folder.mkdir()
    stale = folder / ".generated_20261122_105959_0123abcd.png.part"
    running = folder / ".generated_20261122_115959_0123abcd.png.part"
    stale.write_bytes(b"half")
    running.write_bytes(b"half")
    assert archive.prune(NOON) == 1
    assert names(folder) == {running.name}


def test_clock_set_back_deletes_no_new_image(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100, max_bytes=20))
    paths = [save(archive, age=age) for age in (-5000, -10, 0, 50)]
    assert archive.prune(NOON) == 2
    assert names(folder) == {paths[0].name, paths[1].name}, "the oldest go, as ever"
    assert Archive(folder, Retention(max_age=100)).prune(NOON + timedelta(minutes=59)) == 1
    assert archive.prune(NOON - timedelta(days=400)) == 0


def test_clock_set_ahead_deletes_nothing_by_age_for_a_day_of_running(folder: Path) -> None:
    uptime = Clock()
    archive = Archive(folder, monotonic=uptime)
    for number in range(3):
        save(archive, age=number * DAY)
    later = NOON + timedelta(days=10)
    assert archive.prune(later) == 0
    uptime.now += DAY
    assert archive.prune(later + timedelta(days=1)) == 3


def test_file_deleted_by_another_process_meanwhile_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(folder, Retention(max_age=0))
    save(archive, age=10)
    unlink = Path.unlink

    def by_two(path: Path, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", by_two)
    archive.prune(NOON)
    assert names(folder) == set()


def test_missing_folder_is_pruned_without_error(folder: Path) -> None:
    assert Archive(folder).prune(NOON) == 0
    assert not folder.exists()
