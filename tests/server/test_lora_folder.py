"""LoRA files that are found in a folder, and their names."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.manifest import MANIFEST
from safetensors.numpy import save_file

from engine.errors import LoraMismatch
from engine.plan.lora import About, PreparedLora, Scaling
from server.lora_folder import find

REFITTABLE = replace(MANIFEST, refittable=True)
FITTING = About(
    MANIFEST.model.weights_sha256,
    {name: graph.precision for name, graph in MANIFEST.graphs.items()},
    (Scaling(1.0, {}),),
)


def write(file: Path, about: About = FITTING) -> None:
    file.write_bytes(PreparedLora(about, {}).encode())


def reasons(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """The reason why each file was skipped, by its name."""
    split = [record.getMessage().split(" is skipped: ") for record in caplog.records]
    return {Path(file).name: reason for file, reason in split}


def test_prepared_files_are_found_by_their_stems_and_others_are_skipped_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "prepared.safetensors")
    write(tmp_path / "Anime-2.1_b.lora")
    write(tmp_path / "other.lora", replace(FITTING, weights_sha256="1" * 64))
    save_file({"a": np.zeros(1)}, tmp_path / "as it was trained.safetensors", {"format": "pt"})
    save_file({"a": np.zeros(1)}, tmp_path / "plain.lora")
    save_file({"a": np.zeros(1)}, tmp_path / "old.lora", {"format": "zimage-trt lora 2"})
    (tmp_path / "damaged.safetensors").write_bytes(b"no header")
    (tmp_path / "pickled.pt").write_bytes(b"anything")
    (tmp_path / "._prepared.safetensors").write_bytes(b"\0\5\x16\7")
    (tmp_path / "README.md").write_text("of the folder")
    (tmp_path / "elsewhere.lora").symlink_to(tmp_path / "prepared.safetensors")
    found = find(tmp_path, REFITTABLE)
    assert [name for name, _ in found] == ["Anime-2.1_b", "elsewhere", "prepared"]
    assert dict(found)["prepared"] == tmp_path / "prepared.safetensors"
    said = reasons(caplog)
    unprepared = "is not prepared for plans; prepare it with: zimage-lora "
    assert unprepared in said.pop("plain.lora") and unprepared in said.pop("as it was trained.safetensors")
    assert "was prepared for other weights than these plans have" in said.pop("other.lora")
    assert "was prepared by another version of zimage-lora" in said.pop("old.lora")
    assert said.pop("damaged.safetensors").startswith(f"cannot read {tmp_path / 'damaged.safetensors'}")
    assert said == {
        "pickled.pt": ".pt files are not read; LoRAs must be safetensors files",
        "._prepared.safetensors": "macOS wrote it beside the LoRA of the same name",
    }
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_loras_for_plans_that_cannot_swap_are_refused(tmp_path: Path) -> None:
    assert find(tmp_path, MANIFEST) == ()
    write(tmp_path / "a.lora")
    with pytest.raises(LoraMismatch, match="build them with --refittable"):
        find(tmp_path, MANIFEST)


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
    write(tmp_path / "good.lora")
    assert [name for name, _ in find(tmp_path, REFITTABLE)] == ["good"]
    assert reasons(caplog).keys() == {path.name for path in tmp_path.iterdir()} - {"good.lora"}


@pytest.mark.parametrize("name", ["with space", "ä", "a\nb", "x" * 65, "a,b"])
def test_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.lora")
    with pytest.raises(LoraMismatch, match="rename it"):
        find(tmp_path, REFITTABLE)


def test_two_files_with_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.lora")
    write(tmp_path / "a.safetensors")
    with pytest.raises(LoraMismatch, match="the same name"):
        find(tmp_path, REFITTABLE)


def test_missing_folder_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        find(tmp_path / "nowhere", REFITTABLE)
