"""A checkpoint as configs and as tensors that are read one at a time: a folder in the official layout, or single files.

The module knows files and names. `models` knows the meaning of tensors, and which of them a model needs.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CheckpointError
from engine.plan.directory import sha256
from export.checkpoint import hub
from export.checkpoint.configs import Config, check_keys, read_json
from export.checkpoint.file_kinds import describe, describe_weights
from export.checkpoint.scaled_weights import read_weights
from export.checkpoint.single_file import parts
from export.checkpoint.single_file.derived_configs import derive
from export.checkpoint.weights import Weight

COMPONENTS = ("transformer", "text_encoder", "vae")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
NO_WEIGHTS = (".json", ".txt", ".md", ".py")


@dataclass(frozen=True, slots=True)
class Component:
    """A model of the checkpoint: its config and weights.

    Attributes:
        derived: whether there is no config.json, so that the config follows from the tensors.
    """

    name: str
    config: Config
    weights: dict[str, Weight]
    files: tuple[Path, ...]
    derived: bool = False

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
        components = (self.transformer, self.text_encoder, self.vae)
        configs = [self.directory / part.name / CONFIG for part in components if not part.derived]
        tokenizer = [self.directory / "tokenizer" / name for name in TOKENIZER_FILES]
        template = self.directory / "tokenizer" / "chat_template.jinja"
        scheduler = self.directory / "scheduler" / SCHEDULER_CONFIG
        weights = dict.fromkeys(file for part in components for file in part.files)  # a single file holds several
        return (*configs, *tokenizer, *([template] if template.is_file() else []), scheduler, *weights)

    @property
    def parameters(self) -> int:
        """Number of elements of all weights."""
        return sum(component.parameters for component in (self.transformer, self.text_encoder, self.vae))

    def fingerprint(self) -> str:
        """Return the hex sha256 over the contents of all files, independent of their location."""
        return hashlib.sha256("".join(map(sha256, self.files)).encode()).hexdigest()


def open_checkpoint(model: str, transformer_file: Path | None = None, name: str | None = None) -> Checkpoint:
    """Open a checkpoint, and download it first if needed.

    Args:
        model: folder in the official layout, or a single file with the parts that the folders beside it lack; or a
            Hugging Face / ModelScope id such as Tongyi-MAI/Z-Image-Turbo, which is downloaded (DiffSynth's environment
            variables set the source and the target).
        transformer_file: safetensors file with a transformer, in ComfyUI's or the official key layout, to use in place
            of the folder's weights.
        name: the model's name; None for the hub id, or the name of the folder or file.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind, or the download failed.
    """
    location = hub.locate(model)
    single = None if location.path.is_dir() else location.path
    directory = location.path.parent if single else location.path
    components = _open_components(directory, single, transformer_file and hub.expand(transformer_file))
    for folder in ("tokenizer", "scheduler"):
        _require_folder(directory / folder)
    for file in TOKENIZER_FILES:
        if reason := describe(directory / "tokenizer" / file):
            raise CheckpointError(f"{directory / 'tokenizer' / file} {reason}")
    scheduler = read_json(directory / "scheduler" / SCHEDULER_CONFIG)
    check_keys(scheduler, "scheduler")
    return Checkpoint(name or location.name, directory, **components, scheduler=scheduler)


def _open_components(directory: Path, single: Path | None, transformer_file: Path | None) -> dict[str, Component]:
    """Open each model: from the file that was named for it, else its folder, else a single file beside the folders."""
    opened: dict[str, Component] = {}
    if transformer_file is not None:
        weights = parts.transformer_of(transformer_file, read_weights([transformer_file]))
        opened["transformer"] = _from_file(directory, "transformer", weights, transformer_file)
    if single is None:
        with_weights = [part for part in COMPONENTS if part not in opened and _has_weights(directory / part)]
        opened |= {part: _from_folder(directory, part) for part in with_weights}
    if len(opened) < len(COMPONENTS) and (single or (single := _single_file(directory))):
        for part, weights in parts.split(single, read_weights([single])).items():
            if part not in opened:
                opened[part] = _from_file(directory, part, weights, single)
    for part in COMPONENTS:
        if part not in opened:
            if single and not (directory / part).is_dir():
                held = ", ".join(opened) or "no part of Z-Image"
                raise CheckpointError(f"{single} holds {held}; {part} is missing, also as a folder {directory / part}/")
            opened[part] = _from_folder(directory, part)
    return opened


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder.parent} has no folder {folder.name}/; expected the layout of Tongyi-MAI/Z-Image-Turbo"
        )


def _from_file(directory: Path, part: str, weights: dict[str, Weight], file: Path) -> Component:
    """Make a component of weights in a single file, with the config of its folder if there is one."""
    config = directory / part / CONFIG
    if config.exists() or config.is_symlink():
        return Component(part, read_json(config), weights, (file,))
    return Component(part, derive(part, weights), weights, (file,), derived=True)


def _from_folder(directory: Path, part: str) -> Component:
    folder = directory / part
    _require_folder(folder)
    files = _weight_files(folder)
    return Component(part, read_json(folder / CONFIG), parts.official(part, read_weights(files)), files)


def _single_file(directory: Path) -> Path | None:
    """Return the safetensors file beside the folders, if there is one."""
    files = [path for path in _visible(directory) if path.name.endswith(SUFFIX)]
    if len(files) > 1:
        raise CheckpointError(
            f"{directory} has folders without weights and {len(files)} files ({', '.join(f.name for f in files)}); "
            "pass one of them in place of the folder"
        )
    return files[0] if files else None


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder but for hidden files, such as those that macOS adds (`._model.safetensors`)."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _has_weights(folder: Path) -> bool:
    return any(path.name.endswith((SUFFIX, INDEX)) for path in _visible(folder))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the shards that the folder's index lists, or its only safetensors file."""
    visible = _visible(folder)
    files = [path for path in visible if path.name.endswith(SUFFIX)]
    if (index := _default([path for path in visible if path.name.endswith(INDEX)], INDEX)) is not None:
        return tuple(_shards(index))
    if (file := _default(files, SUFFIX)) is not None:
        return (file,)
    found = ", ".join(path.name for path in files) or "none"
    others = [path for path in visible if path.suffix not in NO_WEIGHTS and path.is_file()]
    reasons = [f"{path.name} {reason}" for path in others if (reason := describe_weights(path))]
    raise CheckpointError(
        f"{folder} must hold one .safetensors file or an index of its shards, found {'; '.join([found, *reasons[:1]])}"
    )


def _default(files: list[Path], suffix: str) -> Path | None:
    """Return the only file, or that which is no variant (`model.safetensors` beside `model.fp16.safetensors`)."""
    if len(files) == 1:
        return files[0]
    for file in files:
        stem = file.name.removesuffix(suffix)
        if all(other.name.startswith(f"{stem}.") for other in files):
            return file
    return None


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index)["weight_map"]
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise CheckpointError(f"{index}: weight_map must give the name of a file in its folder for each tensor")
    files = sorted(index.parent / name for name in names)
    for file in files:
        if not file.is_file():
            reason = describe_weights(file) if file.is_symlink() else f"is not in {index.parent}"
            raise CheckpointError(f"{index.name} names the shard {file.name}, which {reason}")
    return files
