"""Tensors of safetensors files, read one at a time and only when they are needed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch

from engine.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor of a safetensors file, or a range of its rows.

    Attributes:
        rows: first row and the row after the last; None for all.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def source(self) -> str:
        """Key and file, for messages."""
        return f"{self.key} in {self.file}"

    def load(self) -> torch.Tensor:
        file = _open(self.file)
        tensor: torch.Tensor = (
            file.get_tensor(self.key) if self.rows is None else file.get_slice(self.key)[slice(*self.rows)]
        )
        return tensor


def stored_weights(files: Iterable[Path]) -> Iterator[tuple[str, StoredWeight]]:
    """Yield the key and the tensor of every entry in safetensors files."""
    for file in files:
        opened = _open(file)
        for key in opened.keys():  # noqa: SIM118  not a dict
            yield key, StoredWeight(file, key, tuple(opened.get_slice(key).get_shape()))


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, empty if it has none."""
    return _open(file).metadata() or {}


def close_files() -> None:
    """Close the files that were read, whose pages count as memory of the process. No tensor of theirs may be in use."""
    _open.cache_clear()


@lru_cache(maxsize=64)
def _open(file: Path) -> Any:
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}")
    try:
        return safetensors.safe_open(file, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file: {error}; fetch it again") from error
