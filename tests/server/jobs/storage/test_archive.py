"""The archive: names of files, and complete files or none."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path
from threading import Thread

import pytest
from fakes.archive import NOON, names
from fakes.loop import MANIFEST

from server.jobs.storage.images.archive import Archive
from server.serving import ServerOptions, serve

ID = "0123abcd"


def test_file_name_holds_the_time_in_utc(folder: Path) -> None:
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
def test_id_other_than_eight_hex_digits_is_refused(folder: Path, short_id: str) -> None:
    with pytest.raises(ValueError, match="id must be 8 lower-case hex digits"):
        Archive(folder).save(b"", ".png", NOON, short_id)
    assert not folder.exists()


@pytest.mark.parametrize("suffix", ["", "png", ".exe", ".png/../../x", ".png\n", ".PNG"])
def test_unknown_suffix_is_refused(folder: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match="suffix must be"):
        Archive(folder).save(b"", suffix, NOON, ID)
    assert not folder.exists()


def test_time_without_a_zone_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="time zone"):
        Archive(folder).save(b"", ".png", NOON.replace(tzinfo=None), ID)


def test_existing_image_is_not_overwritten(folder: Path) -> None:
    archive = Archive(folder)
    path = archive.save(b"first", ".png", NOON, ID)
    with pytest.raises(FileExistsError):
        archive.save(b"second", ".png", NOON, ID)
    assert path.read_bytes() == b"first"
    assert names(folder) == {path.name}


def test_dangling_symlink_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    link = folder / "generated_20261122_120000_0123abcd.png"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Archive(folder).save(b"data", ".png", NOON, ID)
    assert link.is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_concurrent_writers_of_one_name_leave_one_whole_file(folder: Path) -> None:
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


def test_partial_file_of_another_writer_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    unfinished = folder / ".generated_20261122_120000_0123abcd.png.part"
    unfinished.write_bytes(b"half")
    with pytest.raises(FileExistsError):
        Archive(folder).save(b"data", ".png", NOON, ID)
    assert names(folder) == {unfinished.name}
    assert unfinished.read_bytes() == b"half"


def test_image_appears_only_when_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[str], bytes]] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append((names(folder), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    path = Archive(folder).save(b"data", ".png", NOON, ID)
    assert seen == [({f".{path.name}.part"}, b"data")]


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_failed_save_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(type(error)):
            Archive(folder).save(b"data", ".png", NOON, ID)
    assert names(folder) == set()
    assert Archive(folder).save(b"data", ".png", NOON, ID).exists()  # a second attempt succeeds


def test_missing_folder_is_created_with_its_parents(tmp_path: Path) -> None:
    Archive(tmp_path / "a" / "b").require_usable()
    assert (tmp_path / "a" / "b").is_dir()


def test_file_or_dangling_link_is_no_archive(folder: Path, tmp_path: Path) -> None:
    folder.write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in (folder, tmp_path / "link"):
        with pytest.raises(NotADirectoryError, match=f"{name.name} is a file or a dangling link; name a folder"):
            Archive(name).require_usable()
    with socket.socket() as sock, pytest.raises(NotADirectoryError):
        serve(sock, [], MANIFEST, ServerOptions(archive=Archive(folder / "below")))


CHILD = """
import os, resource, sys
from datetime import UTC, datetime
from pathlib import Path
from server.jobs.storage.images.archive import Archive

case, folder = sys.argv[1], Path(sys.argv[2])
if case == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
elif os.geteuid() == 0:  # root ignores permissions
    os.setuid(65534)
try:
    if case == "read-only, at the start":
        Archive(folder).require_usable()
    else:
        Archive(folder).save(bytes(5000), ".png", datetime.now(UTC), "0123abcd")
except OSError as error:
    print(type(error).__name__, error.errno)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a read-only folder, outside tmp_path, which other users cannot enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        yield Path(name)
        Path(name).chmod(0o755)


@pytest.mark.parametrize(
    ("case", "said"),
    [("full", "OSError 27"), ("read-only", "PermissionError 13"), ("read-only, at the start", "PermissionError None")],
)
def test_full_disk_and_read_only_folder_raise_and_leave_no_file(open_folder: Path, case: str, said: str) -> None:
    """EFBIG stands for ENOSPC: both are raised by a write after some bytes are written."""
    if case == "full":
        open_folder.chmod(0o755)
    command = [sys.executable, "-c", CHILD, case, str(open_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (said, "")
    assert names(open_folder) == set()
