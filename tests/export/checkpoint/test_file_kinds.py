"""Files in place of safetensors: one line says what each is and what to get."""

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import CheckpointError
from export.checkpoint.file_kinds import describe
from export.checkpoint.files import open_checkpoint
from export.checkpoint.lora import Lora, merge
from export.checkpoint.stored_weights import stored_weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 12\n"


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        list(stored_weights([file]))
    message = str(caught.value)
    assert message.startswith((f"{file} is ", f"{file} begins ")), message
    assert "\n" not in message
    return message


def zipped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.safetensors", "x")


def dangling(file: Path) -> None:
    file.symlink_to("../../blobs/4665")


MADE: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("GGUF", lambda file: file.write_bytes(b"GGUF\3\0\0\0" + bytes(64)), "GGUF", ".safetensors"),
    (
        "torch.save",
        lambda file: torch.save({"a": torch.ones(2)}, file),
        "PyTorch pickle",
        "safetensors.torch.save_file",
    ),
    ("old torch.save", lambda file: file.write_bytes(pickle.dumps({"a": 1})), "PyTorch pickle", "save_file"),
    ("LFS pointer", lambda file: file.write_bytes(LFS), "Git LFS pointer", "git lfs pull"),
    ("page", lambda file: file.write_bytes(b"\n<!DOCTYPE html><html>401</html>"), "HTML page", "logged in"),
    ("short page", lambda file: file.write_bytes(b"<html>"), "HTML page", "logged in"),
    ("text", lambda file: file.write_bytes(b"Entry not found"), "'Entry not found'", "download it again"),
    ("JSON error", lambda file: file.write_bytes(b'{"error": "Repository not found"}'), "not found", "again"),
    ("empty", lambda file: file.write_bytes(b""), "empty", "download it again"),
    ("zeros", lambda file: file.write_bytes(bytes(1000)), "unfinished download", "again"),
    ("zip", zipped, "archive", "unpack"),
    ("gzip", lambda file: file.write_bytes(gzip.compress(b"x")), "archive", "unpack"),
    ("macOS", lambda file: file.write_bytes(b"\0\5\x16\7" + bytes(100)), "macOS", "no ._ in front"),
    ("NumPy", lambda file: file.write_bytes(b"\x93NUMPY\1\0"), "NumPy", ".safetensors"),
    ("dangling link", dangling, "link to ../../blobs/4665", "download it again"),
    ("folder", lambda file: file.mkdir(), "folder", "expected a file"),
]


@pytest.mark.parametrize(("make", "kind", "instead"), [made[1:] for made in MADE], ids=[made[0] for made in MADE])
def test_file_of_another_kind_is_named(make: Callable[[Path], object], kind: str, instead: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    make(file)
    message = refusal(file)
    assert kind in message and instead in message


@pytest.mark.parametrize(
    "begin", [b"\x80\x02", b"\x80\x05", b"PK", b"\x3c\x00"], ids=["pickle", "pickle 5", "zip", "<"]
)
def test_header_whose_length_reads_as_another_kind_is_safetensors(tmp_path: Path, begin: bytes) -> None:
    length = int.from_bytes(begin, "little")
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
    (file := tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + b"\7")
    assert file.read_bytes().startswith(begin)
    assert describe(file) is None
    assert [key for key, _ in stored_weights([file])] == ["a"]
    file.write_bytes(file.read_bytes()[:-1])
    file.rename(cut := tmp_path / "cut.safetensors")
    assert "is truncated" in refusal(cut)


def test_kind_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.gguf")
    assert [key for key, _ in stored_weights([tmp_path / "model.gguf"])] == ["a"]


@pytest.mark.parametrize("bytes_lost", [1, 100])
def test_truncated_file_is_told_from_one_with_extra_bytes(tmp_path: Path, bytes_lost: int) -> None:
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (cut := tmp_path / "cut.safetensors").write_bytes(content[:-bytes_lost])
    (longer := tmp_path / "longer.safetensors").write_bytes(content + bytes(bytes_lost))
    assert (
        f"truncated: it has {len(content) - bytes_lost:,} bytes, and its header describes {len(content):,}"
        in refusal(cut)
    )
    assert f"damaged: it has {len(content) + bytes_lost:,} bytes, and its header describes {len(content):,}" in refusal(
        longer
    )


def test_unfinished_download_of_aria2_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.aria2").write_bytes(b"\0\1")
    assert "aria2" in refusal(tmp_path / "model.safetensors")


def test_lora_of_another_kind_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (file := tmp_path / "lora.safetensors").write_bytes(b"<html>401 Unauthorized</html>")
    with pytest.raises(CheckpointError, match="HTML page"):
        merge(open_checkpoint(str(checkpoint)), [Lora(file)])
