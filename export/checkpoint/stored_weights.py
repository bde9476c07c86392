"""Tensors of safetensors files, read one at a time and only when they are needed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch

from engine.errors import CheckpointError
from export.checkpoint.file_kinds import describe_weights


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor of a safetensors file, or a range of its rows.

    Attributes:
        rows: first row and the row after the last; None for all.
        dtype: name of the number format in safetensors, such as BF16 or F8_E4M3; None if it is not known.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    dtype: str | None = None

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

    def row_range(self, start: int, stop: int) -> "StoredWeight":
        """Return rows of a tensor that is not a range itself."""
        assert self.rows is None
        return replace(self, shape=(stop - start, *self.shape[1:]), rows=(start, stop))


def stored_weights(files: Iterable[Path]) -> Iterator[tuple[str, StoredWeight]]:
    """Yield the key and the tensor of every entry in safetensors files."""
    for file in files:
        opened = _open(file)
        for key in opened.keys():  # noqa: SIM118  not a dict
            stored = opened.get_slice(key)
            yield key, StoredWeight(file, key, tuple(stored.get_shape()), dtype=stored.get_dtype())


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, empty if it has none."""
    return _open(file).metadata() or {}


def close_files() -> None:
    """Close the files that were read, whose pages count as memory of the process. No tensor of theirs may be in use."""
    _open.cache_clear()


@lru_cache(maxsize=64)
def _open(file: Path) -> Any:
    if not file.is_file():
        raise CheckpointError(f"{file} {describe_weights(file)}")
    if file.with_name(f"{file.name}.aria2").exists():  # aria2 gives a file its whole size before it has the data
        raise CheckpointError(f"{file} is an unfinished download of aria2; let it finish")
    try:
        return safetensors.safe_open(file, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        reason = describe_weights(file) or f"is not a safetensors file: {error}; fetch it again"
        raise CheckpointError(f"{file} {reason}") from error
