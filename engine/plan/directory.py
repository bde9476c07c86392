"""Reading of a plan directory, with verification of every file against the manifest.

Knows files and hashes; not the execution of plans.
"""

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import msgspec

from engine.errors import PlanCorrupt, PlanMismatch, PlanNotFound
from engine.plan.manifest import (
    IMAGE_INPUT,
    SCHEMA_VERSION,
    Accumulation,
    File,
    Flavor,
    GraphName,
    Manifest,
    MergedLora,
    Precision,
)

MANIFEST_FILE = "manifest.json"
CURRENT = "current"  # in an --output directory, a link to the plan directory built last, or a file with its name
MAX_NAME = 255  # bytes of a file's name
DAMAGED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # msgspec's for bytes that are no manifest


def resolve(directory: Path) -> Path:
    """Return the plan directory that `--engines` names: the directory itself, or the newest in an `--output` directory.

    Raises:
        PlanNotFound: there is none; the message says what is there.
    """
    if directory.is_file():
        raise PlanNotFound(f"{directory} is a file; --engines names the folder that build-engines --output wrote")
    if not directory.is_dir():
        raise PlanNotFound(
            f"no plan directory at {directory}; build one with: build-engines --model ... --output {directory}"
        )
    for candidate in (directory, current(directory)):
        if (candidate / MANIFEST_FILE).is_file():
            return candidate.resolve()
    finished, link = _finished(directory), directory / CURRENT
    if len(finished) == 1 and current(directory) == link and not link.is_symlink():  # copied without the link
        return finished[0].resolve()
    raise PlanNotFound(f"{directory} has no {MANIFEST_FILE}: {_contents(directory, finished)}")


def current(output: Path) -> Path:
    """Return where `current` in an --output directory points to; there may be nothing.

    It is a file with the name of the plan directory where the file system has no symbolic links, or where a copy has
    turned the link into such a file.
    """
    link = output / CURRENT
    if not link.is_file():
        return link
    with link.open("rb") as file:
        written = file.read(MAX_NAME + len(b"\r\n") + 1).strip()
    name = os.fsdecode(written)
    is_name = 0 < len(written) <= MAX_NAME and Path(name).name == name and "\0" not in name
    return output / name if is_name else link


def _finished(directory: Path) -> list[Path]:
    return sorted(manifest.parent for manifest in directory.glob(f"[!.]*/{MANIFEST_FILE}"))


def _contents(directory: Path, finished: Sequence[Path]) -> str:
    """Say what a directory without a manifest holds, and what to do."""
    link, found = directory / CURRENT, current(directory)
    below = sorted({manifest.parent.parent for manifest in directory.glob(f"[!.]*/[!.]*/{MANIFEST_FILE}")})
    if link.is_symlink():
        what = f"its link {CURRENT} points to {link.readlink()}, which has none"
    elif found != link:
        what = f"its file {CURRENT} names {found.name}, which has none"
    elif below and not finished:
        return f"the plans are in {', '.join(map(str, below))}; name that folder with --engines"
    elif any(any(directory.glob(pattern)) for pattern in ("*.onnx*", "*.plan", ".building-*")):
        what = "a build that is running or was interrupted"
    else:
        what = "no finished build"
    if not finished:
        return f"{what}; run build-engines again"
    names = ", ".join(path.name for path in finished)
    return f"{what}; name one of its plan directories ({names}), or run build-engines again"


def read(directory: Path, *, verify: bool = True) -> Manifest:
    """Read the manifest of a plan directory and, unless `verify` is off, hash every file that it lists.

    Raises:
        PlanMismatch: the manifest has another schema.
        PlanCorrupt: the manifest or a file is damaged.
    """
    manifest = read_manifest(directory)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: _check_file(directory, file, verify), manifest.files))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a plan directory, whose other files may be missing: an API replica has no engines.

    Raises:
        PlanMismatch: the manifest has another schema.
        PlanCorrupt: the manifest is damaged.
    """
    raw = (directory / MANIFEST_FILE).read_bytes()
    _check_schema(directory, raw)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except DAMAGED as error:
        raise PlanCorrupt(f"{directory / MANIFEST_FILE} is damaged: {error}; build again") from error
    _check_complete(directory, manifest)
    if manifest.checksum != _checksum(manifest):
        raise PlanCorrupt(f"{directory / MANIFEST_FILE} was altered after it was written; build again")
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, with its checksum."""
    complete = replace(manifest, checksum=_checksum(manifest))
    return msgspec.json.format(msgspec.json.encode(complete), indent=1) + b"\n"


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(replace(manifest, checksum=""))).hexdigest()


def _check_schema(directory: Path, raw: bytes) -> None:
    match = re.search(rb'"schema_version":\s*(\d{1,9})', raw)
    version = int(match[1]) if match else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        update = "update it, or " if version > SCHEMA_VERSION else ""
        raise PlanMismatch(
            f"{directory} has manifest schema {version}, this zimage-trt reads {SCHEMA_VERSION}; "
            f"{update}build again{_command(directory, raw)}"
        )


def _command(directory: Path, raw: bytes) -> str:
    """Return the command that builds plans like those of an older manifest, as far as that can be read."""
    try:
        old = msgspec.json.decode(raw, type=_OldManifest)
    except DAMAGED:
        return ""
    options = ["--model", old.model.name, f"--{old.precision}", "--flavor", old.target.flavor]
    if old.target.flavor == "rtx" and old.target.compute_capabilities:
        options += ["--compute-capability", ",".join(old.target.compute_capabilities)]
    for profile in old.profiles:
        options += ["--profile", profile.name] if profile.name[:1].isdigit() else []  # others are defaults
    options += ["--accumulate", old.accumulation] if old.accumulation != "fp32" else []
    for lora in old.model.loras:
        options += ["--lora", f"{lora.file}:{lora.scale:g}"]
    options += ["--refittable"] if old.refittable else []
    return f" with: {shlex.join(['build-engines', *options, '--output', str(directory.parent)])}"


@dataclass(frozen=True, slots=True)
class _OldModel:
    name: str
    loras: tuple[MergedLora, ...] = ()


@dataclass(frozen=True, slots=True)
class _OldTarget:
    flavor: Flavor
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _OldProfile:
    name: str


@dataclass(frozen=True, slots=True)
class _OldManifest:
    """The part of a manifest that older schemas have too."""

    model: _OldModel
    precision: Precision
    target: _OldTarget
    profiles: tuple[_OldProfile, ...] = ()
    refittable: bool = False
    accumulation: Accumulation = "fp32"


def _check_complete(directory: Path, manifest: Manifest) -> None:
    listed = {file.path for file in manifest.files}
    for name in get_args(GraphName):
        if name in IMAGE_INPUT and not manifest.graphs.keys() & IMAGE_INPUT:
            continue
        if name not in manifest.graphs or manifest.graphs[name].file not in listed:
            raise PlanCorrupt(f"{directory / MANIFEST_FILE} lists no file for the {name}; build again")
    if not manifest.profiles:
        raise PlanCorrupt(f"{directory / MANIFEST_FILE} has no profiles; build again")


def _check_file(directory: Path, file: File, verify: bool) -> None:
    path = directory / file.path
    if not _real(path).is_relative_to(_real(directory)):
        raise PlanCorrupt(f"{directory / MANIFEST_FILE} names {file.path!r}, outside its directory; build again")
    if not path.is_file():
        raise PlanCorrupt(f"{path} is missing; build again")
    if (size := path.stat().st_size) != file.size:
        raise PlanCorrupt(f"{path} has {size} bytes, its manifest says {file.size}; build again")
    if verify and (digest := sha256(path)) != file.sha256:
        raise PlanCorrupt(f"{path} has sha256 {digest[:12]}, its manifest says {file.sha256[:12]}; build again")


def _real(path: Path) -> Path:
    """Return the path without symlinks; Path.resolve would raise RuntimeError for links that point to each other."""
    return Path(os.path.realpath(path))
