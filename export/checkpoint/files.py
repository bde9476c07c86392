"""A checkpoint in the official Hugging Face layout, as configs and as tensors that are read one at a time.

Knows files and names. What the tensors mean, and which there must be, is the business of `models`.
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
from engine.plan.manifest import sha256
from export.checkpoint.comfyui import official_weights
from export.checkpoint.stored_weights import stored_weights
from export.checkpoint.weights import Weight

COMPONENTS = ("transformer", "text_encoder", "vae")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FOLDERS = (*COMPONENTS, "tokenizer", "scheduler")

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Component:
    """A folder of the checkpoint that holds weights."""

    name: str
    config: Config
    weights: dict[str, Weight]
    files: tuple[Path, ...]

    @property
    def parameters(self) -> int:
        """Elements of all weights, those that no graph uses included."""
        return sum(math.prod(weight.shape) for weight in self.weights.values())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The five folders, opened; nothing of the weights is read yet. `name` is the hub id or the folder's name."""

    name: str
    directory: Path
    transformer: Component
    text_encoder: Component
    vae: Component
    scheduler: Config

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that has a say in the plans, in a fixed order."""
        configs = [self.directory / folder / "config.json" for folder in COMPONENTS]
        tokenizer = [self.directory / "tokenizer" / name for name in TOKENIZER_FILES]
        template = self.directory / "tokenizer" / "chat_template.jinja"
        scheduler = self.directory / "scheduler" / "scheduler_config.json"
        weights = [f for c in (self.transformer, self.text_encoder, self.vae) for f in c.files]
        return (*configs, *tokenizer, *([template] if template.is_file() else []), scheduler, *weights)

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(component.parameters for component in (self.transformer, self.text_encoder, self.vae))

    def fingerprint(self) -> str:
        """Hex sha256 over the contents of all files, wherever they lie."""
        return hashlib.sha256("".join(map(sha256, self.files)).encode()).hexdigest()


def open_checkpoint(model: str, transformer_file: Path | None = None) -> Checkpoint:
    """Opens a checkpoint.

    Args:
        model: a folder in the official layout, or a hub / ModelScope id such as Tongyi-MAI/Z-Image-Turbo, which
            DiffSynth downloads (its environment variables say from where and where to).
        transformer_file: a single-file safetensors of the transformer in ComfyUI's or the official key layout,
            used in place of the folder's weights.

    Raises:
        CheckpointError: names what is missing or damaged.
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
    """A JSON object from a file, or CheckpointError."""
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
    """A number of a config that divides or scales; CheckpointError if it is not finite and above zero."""
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        where = f"{config.path.parent.name}/{config.path.name}: " if isinstance(config, _Object) else ""
        raise CheckpointError(f"{where}{key} must be a number above zero, got {value!r}")
    return float(value)


class _Object(Config):
    """A JSON object that knows its file: to look up a key that it lacks is a CheckpointError."""

    def __init__(self, content: Config, path: Path) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path} has no {key}")


def _download(model: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise CheckpointError(f"no folder at {model}, and it does not read as a hub id (owner/name)")
    from diffsynth.core import ModelConfig  # imports much; a local folder needs none of it

    try:
        parts = [ModelConfig(model_id=model, origin_file_pattern=f"{folder}/") for folder in FOLDERS]
        with redirect_stdout(sys.stderr):  # DiffSynth prints a banner
            for part in parts:
                part.download_if_necessary()
    except Exception as error:
        raise CheckpointError(
            f"could not download {model}: {error}. Fetch it where there is a network and pass the folder"
        ) from error
    return Path(parts[0].local_model_path) / model


def _component(directory: Path, name: str) -> Component:
    folder = directory / name
    files = _weight_files(folder)
    return Component(name, read_json(folder / "config.json"), dict(stored_weights(files)), files)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The shards that the folder's index names, or its only safetensors file."""
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
