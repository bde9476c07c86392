"""The archive: names, whole files or none, what is swept, and above all what is not."""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Event, Thread

import pytest
from fakes.jobs import image, job

from server.jobs.archive import Archive
from server.jobs.archive_writer import MAX_QUEUED, ArchiveWriter
from server.jobs.retention import DAY, Retention

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
ID = "0123abcd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


def save(archive: Archive, *, age: float = 0, size: int = 10, number: int = 0) -> Path:
    return archive.save(b"x" * size, ".png", NOON - timedelta(seconds=age), f"{number:08x}")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_name_tells_the_time_in_utc(folder: Path) -> None:
    path = Archive(folder).save(b"data", ".webp", NOON.astimezone(timezone(timedelta(hours=8))), ID)
    assert path == folder / "generated_20261122_120000_0123abcd.webp"
    assert path.read_bytes() == b"data"
    assert names(folder) == {path.name}


@pytest.mark.parametrize(
    "short_id",
    [
        "",
        "0123abc",
        "0123abcde",
        "0123ABCD",
        "../../ab",
        "0123abc/",
        "0123abc\0",
        "0123abc\n",
        "0123abcd\n",
        "０123abcd",
    ],
)
def test_an_id_is_eight_digits_of_hex(folder: Path, short_id: str) -> None:
    with pytest.raises(ValueError, match="id must be 8 lower-case hex digits"):
        Archive(folder).save(b"", ".png", NOON, short_id)
    assert not folder.exists()


@pytest.mark.parametrize("suffix", ["", "png", ".exe", ".png/../../x", ".png\n", ".PNG"])
def test_a_suffix_is_that_of_an_image(folder: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match="suffix must be"):
        Archive(folder).save(b"", suffix, NOON, ID)
    assert not folder.exists()


def test_a_time_knows_its_zone(folder: Path) -> None:
    with pytest.raises(ValueError, match="time zone"):
        Archive(folder).save(b"", ".png", NOON.replace(tzinfo=None), ID)


def test_nothing_is_overwritten(folder: Path) -> None:
    archive = Archive(folder)
    path = archive.save(b"first", ".png", NOON, ID)
    with pytest.raises(FileExistsError):
        archive.save(b"second", ".png", NOON, ID)
    assert path.read_bytes() == b"first"
    assert names(folder) == {path.name}


def test_not_even_a_dangling_symlink_is_overwritten(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    link = folder / "generated_20261122_120000_0123abcd.png"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Archive(folder).save(b"data", ".png", NOON, ID)
    assert link.is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_of_many_writers_of_one_name_one_wins(folder: Path) -> None:
    archive, won = Archive(folder), list[bytes]()

    def write(data: bytes) -> None:
        try:
            archive.save(data, ".png", NOON, ID)
        except FileExistsError:
            return
        won.append(data)

    threads = [Thread(target=write, args=(bytes([number]) * 100_000,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [name] = names(folder)
    assert [(folder / name).read_bytes()] == won


def test_an_image_that_another_is_writing_is_left_to_it(folder: Path) -> None:
    folder.mkdir()
    unfinished = folder / ".generated_20261122_120000_0123abcd.png.part"
    unfinished.write_bytes(b"half")
    with pytest.raises(FileExistsError):
        Archive(folder).save(b"data", ".png", NOON, ID)
    assert names(folder) == {unfinished.name}
    assert unfinished.read_bytes() == b"half"


def test_an_image_shows_only_when_it_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[str], bytes]] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append((names(folder), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    path = Archive(folder).save(b"data", ".png", NOON, ID)
    assert seen == [({f".{path.name}.part"}, b"data")]


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_what_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(type(error)):
            Archive(folder).save(b"data", ".png", NOON, ID)
    assert names(folder) == set()
    assert Archive(folder).save(b"data", ".png", NOON, ID).exists()  # nor does it stand in the way of a second try


CHILD = """
import os, resource, sys
from datetime import UTC, datetime
from pathlib import Path
from server.jobs.archive import Archive

case, folder = sys.argv[1], Path(sys.argv[2])
if case == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
elif os.geteuid() == 0:  # whom no permission holds back
    os.setuid(65534)
try:
    Archive(folder).save(bytes(5000), ".png", datetime.now(UTC), "0123abcd")
except OSError as error:
    print(type(error).__name__, error.errno)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Not below tmp_path, which is closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        yield Path(name)
        Path(name).chmod(0o755)


@pytest.mark.parametrize(("case", "said"), [("full", "OSError 27"), ("read-only", "PermissionError 13")])
def test_a_full_disk_and_a_folder_that_is_not_ours_are_the_callers_to_know(
    open_folder: Path, case: str, said: str
) -> None:
    """EFBIG, the limit of a file's size, stands for ENOSPC: both come from write, after some bytes are written."""
    if case == "full":
        open_folder.chmod(0o755)
    command = [sys.executable, "-c", CHILD, case, str(open_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (said, "")
    assert names(open_folder) == set()


def test_sweeping_removes_what_is_too_old(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100))
    old, edge, new = (save(archive, age=age) for age in (101, 100, 0))
    assert archive.prune(NOON) == 1
    assert names(folder) == {edge.name, new.name}
    assert not old.exists()
    assert archive.prune(NOON) == 0


def test_a_week_is_kept_unless_told_otherwise(folder: Path) -> None:
    save(Archive(folder), age=7 * DAY + 1)
    kept = save(Archive(folder), age=7 * DAY - 1)
    assert Archive(folder, Retention(max_age=math.inf)).prune(NOON) == 0
    assert Archive(folder).prune(NOON) == 1
    assert names(folder) == {kept.name}


def test_age_is_what_the_name_says(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100))
    copied, touched = save(archive, age=200), save(archive)
    os.utime(copied, (NOON.timestamp(), NOON.timestamp()))
    os.utime(touched, (0, 0))
    assert archive.prune(NOON) == 1
    assert names(folder) == {touched.name}


def test_then_the_oldest_go_until_the_rest_fits(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100, max_bytes=25))
    save(archive, age=1000, size=1000)  # goes by its age, and counts no more
    paths = [save(archive, age=age, size=10) for age in (50, 10, 40, 20)]
    assert archive.prune(NOON) == 3
    assert names(folder) == {paths[1].name, paths[3].name}
    assert archive.prune(NOON) == 0


def test_a_limit_that_nothing_fits_in_empties_the_folder(folder: Path) -> None:
    archive = Archive(folder, Retention(max_bytes=9))
    save(archive, number=1)
    assert archive.prune(NOON) == 1
    assert names(folder) == set()


def test_bytes_that_just_fit_stay(folder: Path) -> None:
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


def test_what_is_not_the_archives_stays(folder: Path, tmp_path: Path) -> None:
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


def test_foreign_bytes_do_not_count(folder: Path, tmp_path: Path) -> None:
    archive = Archive(folder, Retention(max_bytes=10))
    kept = save(archive)
    (folder / "huge.bin").write_bytes(bytes(10_000))
    (tmp_path / "huge.bin").write_bytes(bytes(10_000))
    (folder / "generated_20200101_000000_00000002.png").symlink_to(tmp_path / "huge.bin")
    assert archive.prune(NOON) == 0
    assert kept.exists()


def test_what_a_crash_left_goes_and_what_is_being_written_stays(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=math.inf, max_bytes=0))
    folder.mkdir()
    stale = folder / ".generated_20261122_105959_0123abcd.png.part"
    running = folder / ".generated_20261122_115959_0123abcd.png.part"
    stale.write_bytes(b"half")
    running.write_bytes(b"half")
    assert archive.prune(NOON) == 1
    assert names(folder) == {running.name}


def test_a_clock_set_back_removes_nothing_new(folder: Path) -> None:
    archive = Archive(folder, Retention(max_age=100, max_bytes=20))
    paths = [save(archive, age=age) for age in (-5000, -10, 0, 50)]
    assert archive.prune(NOON) == 2
    assert names(folder) == {paths[0].name, paths[1].name}, "the oldest go, as ever"
    assert archive.prune(NOON - timedelta(days=400)) == 0
    assert archive.prune(NOON + timedelta(days=400)) == 2


def test_a_file_that_vanishes_while_sweeping_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(folder, Retention(max_age=0))
    save(archive, age=10)
    unlink = Path.unlink

    def by_two(path: Path, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", by_two)
    archive.prune(NOON)
    assert names(folder) == set()


def test_a_folder_that_is_not_there_yet_is_empty(folder: Path) -> None:
    assert Archive(folder).prune(NOON) == 0
    assert not folder.exists()


def test_an_archive_that_cannot_be_written_holds_up_nobody(folder: Path) -> None:
    hung = Event()

    class Hanging(Archive):
        def save(self, *_: object) -> Path:
            hung.wait()
            raise OSError("the disk is gone")

    writer = ArchiveWriter(Hanging(folder))
    writer.close(0.1)  # never started
    writer.start()
    for index in range(MAX_QUEUED + 2):
        writer.put(job(), image(index % 2))
    started = time.monotonic()
    writer.close(0.1)
    assert time.monotonic() - started < 1
    hung.set()


def test_much_that_is_new_is_swept_at_once(folder: Path) -> None:
    writer = ArchiveWriter(Archive(folder, Retention(max_bytes=1000)))
    writer.start()
    for index in range(20):
        writer.put(replace(job(), id=f"job_{index:032x}"), image(0, bytes(100)))
    writer.close(5)
    assert len(names(folder)) <= 12
