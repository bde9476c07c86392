"""Location of a checkpoint: a folder, a file, a folder of the hub's cache, or a hub id that is downloaded.

Needs no PyTorch. Downloads read DiffSynth's environment variables, so that both share what they downloaded.
"""

import difflib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CheckpointError

FOLDERS = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")
CACHED = "models--"  # begins the folder of a model in Hugging Face's cache
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|modelscope\.\w+/models|hf-mirror\.com)/([\w.-]+/[\w.-]+)")
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".gguf", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".zip")
BOOKKEEPING = {".lock", ".metadata", ".TAG", ".gitignore", ".msc", ".mv", ".mdl"}  # files that the hubs' clients add


CLOSE = 0.8  # similarity of a mistyped name, of 1
REASON_SHOWN = 300  # characters of an error in a message


@dataclass(frozen=True, slots=True)
class Location:
    """A checkpoint on disk.

    Attributes:
        path: its folder, or a single file of weights.
        name: hub id, or the name of the folder or file.
    """

    path: Path
    name: str


def locate(model: str) -> Location:
    """Find a checkpoint on disk, and download it first if `model` is the id of one that is not there.

    Raises:
        CheckpointError: there is no such folder, or the download failed.
    """
    return find(model) or Location(_download(model), model)


def find(model: str) -> Location | None:
    """Find a checkpoint on disk; None if `model` is a hub id.

    Raises:
        CheckpointError: there is no such folder or file, and `model` is no hub id.
    """
    if not model.strip():
        raise CheckpointError("the model is an empty text; expected a folder, a file or a hub id (owner/name)")
    path = expand(model)
    if path.is_dir():
        folder = _snapshot(path)
        return Location(folder, _folder_name(folder))
    if path.is_file() or path.is_symlink():
        return Location(path, path.stem)
    if _is_path(model) or not HUB_ID.fullmatch(model):
        raise CheckpointError(_not_found(model, path))
    return None


def expand(path: str | Path) -> Path:
    """Expand `~`, which shells leave as it is after `=`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def _is_path(model: str) -> bool:
    """Return True if a text is meant as a path, though nothing is there."""
    return (
        model.startswith((".", "/", "~"))
        or "\\" in model
        or model.count("/") > 1
        or model.lower().endswith(WEIGHT_SUFFIXES)
        or ("/" in model and Path(model).parent.is_dir())
    )


def _not_found(model: str, path: Path) -> str:
    if page := PAGE.match(model):
        return f"there is no folder {model}; to download it, pass its id (owner/name): {page[1]}"
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=CLOSE)
    meant = f"did you mean {path.with_name(close[0])}?" if close else "expected one, or a hub id (owner/name)"
    message = f"there is no folder or file {model}; {meant}"
    if HUB_ID.fullmatch(model) and not model.lower().endswith(WEIGHT_SUFFIXES):
        stop = "" if close else "."
        message += f"{stop} If it is a hub id, run from a folder that has no {path.parent}/ of its own"
    return message


def _snapshot(folder: Path) -> Path:
    """Return the snapshot in a model's folder of Hugging Face's cache; other folders as they are."""
    snapshots = folder / "snapshots"
    if not (folder.resolve().name.startswith(CACHED) and snapshots.is_dir()):
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (snapshot := snapshots / main.read_text().strip()).is_dir():
        return snapshot
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) != 1:
        raise CheckpointError(f"{snapshots} holds {len(found)} snapshots; pass the folder of one")
    return found[0]


def _folder_name(folder: Path) -> str:
    """Return the hub id of a snapshot in Hugging Face's cache, else the folder's own name."""
    resolved = folder.resolve()
    model = resolved.parent.parent.name
    if resolved.parent.name == "snapshots" and model.startswith(CACHED):
        return model.removeprefix(CACHED).replace("--", "/", 1)
    return resolved.name or "checkpoint"


def _download(model: str) -> Path:
    directory = Path(os.environ.get("DIFFSYNTH_MODEL_BASE_PATH", "./models")) / model
    if os.environ.get("DIFFSYNTH_SKIP_DOWNLOAD", "").lower() == "true":
        if not directory.is_dir():
            raise CheckpointError(f"{model} is not in {directory.parent.parent}, and DIFFSYNTH_SKIP_DOWNLOAD is set")
        return directory
    source = os.environ.get("DIFFSYNTH_DOWNLOAD_SOURCE", "modelscope").lower()
    if source not in ("modelscope", "huggingface"):
        raise CheckpointError(f"DIFFSYNTH_DOWNLOAD_SOURCE must be modelscope or huggingface, got {source!r}")
    existed = [folder for folder in (directory, *directory.parents) if folder.exists()]
    try:
        with _quiet():
            sizes = _list_modelscope(model) if source == "modelscope" else _list_huggingface(model)
            require_space(model, directory, sizes)
            _fetch(model, directory, source)
    except CheckpointError:
        raise
    except Exception as error:  # the clients of both hubs raise their own and those of their HTTP libraries
        raise CheckpointError(
            f"could not download {model} from {source}: {_reason(error)}. Check the id and the network, or download it "
            "on another machine and pass the folder"
        ) from error
    finally:
        _remove_empty(directory, keep=existed[0])
    return directory


def _reason(error: BaseException) -> str:
    """Return the system's own words if an error goes back to the network or the disk, else those of the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, FileNotFoundError):
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:REASON_SHOWN] or type(error).__name__


def require_space(model: str, directory: Path, sizes: Mapping[str, int]) -> None:
    """Check what a hub has of a model, and that its files have room on disk.

    Args:
        directory: folder to download to; files that it has are not downloaded again.
        sizes: bytes of each file by its path in the repository.

    Raises:
        CheckpointError: a folder of the official layout is missing, or the disk has too little space.
    """
    for folder in FOLDERS:
        if not any(path.startswith(f"{folder}/") for path in sizes):
            raise CheckpointError(f"{model} has no folder {folder}/; expected the layout of Tongyi-MAI/Z-Image-Turbo")
    wanted = {path for path in sizes if path.split("/")[0] in FOLDERS and not (directory / path).exists()}
    needed = sum(sizes[path] for path in wanted)
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"{model} needs {needed / 1e9:,.1f} GB in {directory}, which has {free / 1e9:,.1f} GB free; "
            "make room, or set DIFFSYNTH_MODEL_BASE_PATH to a folder on another disk"
        )


def _list_modelscope(model: str) -> dict[str, int]:
    from modelscope.hub.api import HubApi

    return {file["Path"]: int(file["Size"] or 0) for file in HubApi().get_model_files(model, recursive=True)}


def _list_huggingface(model: str) -> dict[str, int]:
    from huggingface_hub import HfApi

    files = HfApi().model_info(model, files_metadata=True).siblings or []
    return {file.rfilename: file.size or 0 for file in files}


def _fetch(model: str, directory: Path, source: str) -> None:
    """Download the folders of the official layout, without files that are there."""
    wanted = [f"{folder}/*" for folder in FOLDERS]
    present = [path.relative_to(directory).as_posix() for folder in FOLDERS for path in (directory / folder).glob("*")]
    if source == "modelscope":
        from modelscope import snapshot_download

        snapshot_download(
            model, local_dir=str(directory), allow_file_pattern=wanted, ignore_file_pattern=present or None
        )
    else:
        from huggingface_hub import snapshot_download as download_from_huggingface

        download_from_huggingface(model, local_dir=directory, allow_patterns=wanted, ignore_patterns=present or None)


def _remove_empty(directory: Path, keep: Path) -> None:
    """Remove the folders that a failed download made, up to `keep`, which was there before; keep files to resume."""
    if directory == keep:
        return
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_size and not BOOKKEEPING & {path.name, path.suffix}:
            return
    shutil.rmtree(directory, ignore_errors=True)
    for folder in directory.parents:
        if folder == keep or not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hubs' clients from logging attempts that failed, and standard output for the plans' path."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(disabled)
