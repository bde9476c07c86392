"""Kinds of files that are found where weights or configurations are expected, told by their content.

The module knows no tensor. `stored_weights` and `configs` ask it when they cannot read a file.
"""

import json
import zipfile
from pathlib import Path

AGAIN = "download it again"
SAFETENSORS = "take the .safetensors file of the model instead"
CONVERT = (
    "it can run code when it is loaded, so it is not read. Take the .safetensors file of the model, or convert this "
    "one: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
)
PICKLE = f"a PyTorch pickle; {CONVERT}"
UNPACK = "an archive; unpack it and pass what is in it"
KINDS = (  # (first bytes, what the file is)
    (b"GGUF", "a GGUF file, whose weights are quantized for llama.cpp; take the BF16 or FP8 .safetensors file instead"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, a text in place of the file; run `git lfs pull` in its repository, or download the file",
    ),
    (b"\0\5\x16\7", "a file of macOS with attributes of another file; take the file whose name has no ._ in front"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"\x1f\x8b", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", UNPACK),
    (b"Rar!", UNPACK),
    (b"\x28\xb5\x2f\xfd", UNPACK),
    (b"\xfd7zXZ", UNPACK),
    (b"\x93NUMPY", f"a NumPy array; {SAFETENSORS}"),
    (b"\x89HDF", f"an HDF5 file; {SAFETENSORS}"),
)
HEAD = 4096  # bytes of a file that tell its kind
HEADER = 8  # bytes that hold the length of a safetensors header
LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors
TEXT_SHOWN = 60  # characters of a text file in a message


def describe_weights(file: Path) -> str | None:
    """Return why a file is not safetensors, and what to do about it, to follow its path in a message; else None."""
    if (known := describe(file)) is not None:
        return known
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    if (cut_off := _cut_off(file, head)) is not None:
        return cut_off
    if not (text := " ".join(_text(head).split())):
        return None
    return f"is a text, which begins with {text[:TEXT_SHOWN]!r}, in place of the file; {AGAIN}"


def describe(file: Path) -> str | None:
    """Return why a file is neither safetensors nor JSON, to follow its path in a message; None if it may be."""
    if file.is_symlink() and not file.exists():
        return f"is a link to {file.readlink()}, which does not exist: an incomplete download or copy; {AGAIN}"
    if file.is_dir():
        return "is a folder; expected a file"
    if not file.is_file():
        return "does not exist"
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return f"is empty; {AGAIN}"
    if _header_length(head) is not None:  # whose bytes may be those that begin another kind
        return None
    for magic, kind in KINDS:
        if head.startswith(magic):
            return f"is {kind}"
    if head.startswith(b"PK"):
        return f"is {_zip_kind(file)}"
    if not any(head):
        return f"begins with zeros only: an unfinished download; {AGAIN}"
    if _text(head).startswith("<"):
        return (
            "is an HTML page: the site sent a page, such as a log-in or an error, in place of the file; "
            "download it with the client of the hub, logged in where the model is gated"
        )
    return None


def _zip_kind(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return f"an incomplete zip archive or PyTorch pickle; {SAFETENSORS}"
    return PICKLE if any(name.endswith("data.pkl") for name in names) else UNPACK


def _cut_off(file: Path, head: bytes) -> str | None:
    """Compare the size of a safetensors file with what its header says."""
    size = file.stat().st_size
    if size <= HEADER:
        return f"is truncated: it has {size} bytes; {AGAIN}"
    if (length := _header_length(head)) is None:
        return None
    end = HEADER + length
    if size >= end:
        with file.open("rb") as opened:
            opened.seek(HEADER)
            end += _data_bytes(opened.read(length))
    if size < end:
        return f"is truncated: it has {size:,} bytes, and its header describes {end:,} or more; {AGAIN}"
    return f"is damaged: it has {size:,} bytes, and its header describes {end:,}; {AGAIN}" if size > end else None


def _header_length(head: bytes) -> int | None:
    """Return the bytes of a safetensors header; None if the file does not begin with one."""
    length = int.from_bytes(head[:HEADER], "little")
    return length if head[HEADER : HEADER + 1] == b"{" and length <= LARGEST_HEADER else None


def _data_bytes(header: bytes) -> int:
    try:
        entries = json.loads(header)
        return max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return 0


def _text(head: bytes) -> str:
    """Decode the beginning of a file; empty if it is not text."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < HEAD - 3:  # not a character that the end of the head cuts
            return ""
        text = head[: error.start].decode()
    text = text.removeprefix("\ufeff").strip()
    return text if all(character.isprintable() or character.isspace() for character in text) else ""
