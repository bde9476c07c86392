"""Atomic writing of files."""

from pathlib import Path

from engine.files import whole_file


def test_unfinished_file_of_another_writer_is_not_in_the_way(tmp_path: Path) -> None:
    """A process that was killed leaves one, and in a container the next process has the same id."""
    file = tmp_path / "denoiser.cache"
    with whole_file(file) as killed:
        killed.write(b"half")
        with whole_file(file) as writer:
            writer.write(b"all of it")
        assert file.read_bytes() == b"all of it"
