"""A checkpoint in the official Hugging Face layout, as configs and as tensors that are read one at a time.

The module knows files and names. `models` knows the meaning of tensors, and which of them a model needs.
"""

import hashlib
import json
import math
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.plan.directory import sha256
from export.checkpoint.comfyui import official_weights
from export.checkpoint.stored_weights import stored_weights
from export.checkpoint.weights import Weight

COMPONENTS = ("transformer", "text_encoder", "vae")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FOLDERS = (*COMPONENTS, "tokenizer", "scheduler")

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Component:
    """A folder of the checkpoint with a config and weights."""

    name: str
    config: Config
    weights: dict[str, Weight]
    files: tuple[Path, ...]

    @property
    def parameters(self) -> int:
        """Number of elements of all weights, including weights that no graph uses."""
        return sum(math.prod(weight.shape) for weight in self.weights.values())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint. Its weights are not read yet.

    Attributes:
        name: hub id, or the folder's name.
        directory: folder of the checkpoint on disk.
    """

    name: str
    directory: Path
    transformer: Component
    text_encoder: Component
    vae: Component
    scheduler: Config

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the plans depend on, in a fixed order."""
        configs = [self.directory / folder / "config.json" for folder in COMPONENTS]
        tokenizer = [self.directory / "tokenizer" / name for name in TOKENIZER_FILES]
        template = self.directory / "tokenizer" / "chat_template.jinja"
        scheduler = self.directory / "scheduler" / "scheduler_config.json"
        weights = [f for c in (self.transformer, self.text_encoder, self.vae) for f in c.files]
        return (*configs, *tokenizer, *([template] if template.is_file() else []), scheduler, *weights)

    @property
    def parameters(self) -> int:
        """Number of elements of all weights."""
        return sum(component.parameters for component in (self.transformer, self.text_encoder, self.vae))

    def fingerprint(self) -> str:
        """Return the hex sha256 over the contents of all files, independent of their location."""
        return hashlib.sha256("".join(map(sha256, self.files)).encode()).hexdigest()


def open_checkpoint(model: str, transformer_file: Path | None = None) -> Checkpoint:
    """Open a checkpoint, and download it first if needed.

    Args:
        model: folder in the official layout, or a hub / ModelScope id such as Tongyi-MAI/Z-Image-Turbo, which
            DiffSynth downloads (its environment variables set the source and the target).
        transformer_file: single safetensors file of the transformer, in ComfyUI's or the official key layout, to use
            in place of the folder's weights.

    Raises:
        CheckpointError: a file is missing or damaged, or the download failed.
    """
    local = Path(model).is_dir()
    directory = Path(model) if local else _download(model)
    for folder in FOLDERS:
        if not (directory / folder).is_dir():
            raise CheckpointError(
                f"{directory} has no folder {folder}/; expected the layout of Tongyi-MAI/Z-Image-Turbo"
            )
    for name in TOKENIZER_FILES:
        if not (directory / "tokenizer" / name).is_file():
            raise CheckpointError(f"{directory / 'tokenizer'} has no {name}")
    transformer, text_encoder, vae = (_component(directory, name) for name in COMPONENTS)
    if transformer_file is not None:
        transformer = replace(transformer, weights=official_weights(transformer_file), files=(transformer_file,))
    scheduler = read_json(directory / "scheduler" / "scheduler_config.json")
    name = directory.resolve().name if local else model
    return Checkpoint(name, directory, transformer, text_encoder, vae, scheduler)


def read_json(path: Path) -> Config:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return _Object(value, path)


def positive(config: Config, key: str) -> float:
    """Return a number of a config that must be finite and above zero, else raise CheckpointError."""
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        where = f"{config.path.parent.name}/{config.path.name}: " if isinstance(config, _Object) else ""
        raise CheckpointError(f"{where}{key} must be a number above zero, got {value!r}")
    return float(value)


class _Object(Config):
    """A JSON object that raises a CheckpointError naming its file when a key is missing."""

    def __init__(self, content: Config, path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path} has no {key}")


def _download(model: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise CheckpointError(f"there is no folder at {model}, and it is not a hub id (owner/name) either")
    from diffsynth.core import ModelConfig  # a slow import that a local folder does not need

    try:
        parts = [ModelConfig(model_id=model, origin_file_pattern=f"{folder}/") for folder in FOLDERS]
        with redirect_stdout(sys.stderr):  # DiffSynth prints a banner
            for part in parts:
                part.download_if_necessary()
    except Exception as error:
        raise CheckpointError(
            f"could not download {model}: {error}. Download it on a machine with a network and pass the folder"
        ) from error
    return Path(parts[0].local_model_path) / model


def _component(directory: Path, name: str) -> Component:
    folder = directory / name
    files = _weight_files(folder)
    return Component(name, read_json(folder / "config.json"), dict(stored_weights(files)), files)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the shards that the folder's index lists, or its only safetensors file."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = set(read_json(indices[0])["weight_map"].values())
        files = sorted(folder / name for name in names)
    else:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            found = ", ".join(f.name for f in files) or "none"
            raise CheckpointError(f"{folder} must hold one .safetensors file or an index of its shards, found {found}")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{indices[0].name} names the shard {file.name}, which is not in {folder}")
    return tuple(files)
