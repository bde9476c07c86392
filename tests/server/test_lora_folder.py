"""LoRA files that are found in a folder, and their names."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.errors import LoraMismatch
from engine.plan.lora import FORMAT
from server.lora_folder import find


def test_prepared_files_are_found_by_their_stems(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "prepared.safetensors", {"format": FORMAT})
    save_file({"a": np.zeros(1)}, tmp_path / "as it was trained.safetensors", {"format": "pt"})
    save_file({"a": np.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no header")
    (tmp_path / "Anime-2.1_b.lora").write_bytes(b"anything; the worker reads it")
    (tmp_path / "README.md").write_text("of the folder")
    (tmp_path / ".lora").write_text("has no stem")
    (tmp_path / "elsewhere.lora").symlink_to(tmp_path / "prepared.safetensors")
    found = find(tmp_path)
    assert [name for name, _ in found] == ["Anime-2.1_b", "elsewhere", "prepared"]
    assert dict(found)["prepared"] == tmp_path / "prepared.safetensors"


@pytest.mark.timeout(20)
def test_pipes_sockets_devices_folders_and_dangling_links_are_skipped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "device.safetensors").symlink_to("/dev/zero")
    (tmp_path / "pipe.lora").symlink_to(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.lora").mkdir()
    (tmp_path / "dangling.lora").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.lora"))
    (tmp_path / "good.lora").touch()
    assert [name for name, _ in find(tmp_path)] == ["good"]
    skipped = {Path(record.getMessage().split(" is skipped")[0]).name for record in caplog.records}
    assert skipped == {path.name for path in tmp_path.iterdir()} - {"good.lora"}


@pytest.mark.parametrize("name", ["with space", "ä", "a\nb", "x" * 65, "a,b"])
def test_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.lora").touch()
    with pytest.raises(LoraMismatch, match="rename it"):
        find(tmp_path)


def test_two_files_with_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.lora").touch()
    save_file({"a": np.zeros(1)}, tmp_path / "a.safetensors", {"format": FORMAT})
    with pytest.raises(LoraMismatch, match="the same name"):
        find(tmp_path)


def test_missing_folder_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        find(tmp_path / "nowhere")
