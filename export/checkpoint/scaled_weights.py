"""Weights that are stored in FP8 or INT8 with a scale beside them, as ComfyUI's fp8_scaled files hold them.

ComfyUI has two spellings: `scale_weight` beside a weight, with a tensor `scaled_fp8` that marks the file, and
`weight_scale`, with a note in JSON beside each weight (`comfy_quant`) or in the file's metadata. In both a weight is
the stored tensor times its scale. Scales of inputs only matter to products in FP8, which the graphs do not have.
"""

import json
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError
from export.checkpoint.stored_weights import StoredWeight, read_metadata, stored_weights
from export.checkpoint.weights import Derived

SCALES = (".scale_weight", ".weight_scale")
NOTE, METADATA = ".comfy_quant", "_quantization_metadata"
UNUSED = (NOTE, ".scale_input", ".input_scale")  # beside a weight
MARKER = "scaled_fp8"
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
STORED = ("F8_E4M3", "F8_E5M2", "I8")
SCALE_DTYPES = ("F64", "F32", "F16", "BF16")
OTHER_QUANTIZATION = (  # (what a key ends with, its format)
    (".weight_scale_2", "nvfp4"),
    (".pre_quant_scale", "nvfp4 with AWQ"),
    (".weight_s_rel", "asym_w4a8_int8"),
    (".weight_packed", "compressed-tensors"),
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".wscales", "SVDQuant (Nunchaku)"),
    (".qweight", "GPTQ or AWQ"),
    ("._data", "optimum-quanto"),
)
INSTEAD = "take the file in BF16 or in FP8 (float8_e4m3fn)"


@dataclass(frozen=True, slots=True)
class Dequantized(Derived):
    """A stored weight times its scale, in FP32. The scale is one number, or one per row, [rows, 1]."""

    weight: StoredWeight
    scale: StoredWeight

    def load(self) -> Tensor:
        scale = self.scale.load().float()
        scaled: Tensor = self.weight.load().float() * (scale if scale.numel() > 1 else scale.reshape(()))
        return scaled

    def row_range(self, start: int, stop: int) -> "Dequantized":
        """Return rows of a tensor that is not a range itself."""
        per_row = self.scale.shape == (self.shape[0], 1) and self.shape[0] > 1
        return Dequantized(
            self.weight.row_range(start, stop), self.scale.row_range(start, stop) if per_row else self.scale
        )


FileWeight = StoredWeight | Dequantized  # a tensor as a file gives it


def read_weights(files: Iterable[Path]) -> dict[str, FileWeight]:
    """Return the weights of safetensors files by their keys, without the scales and notes beside them.

    Raises:
        CheckpointError: a file cannot be read, its format of quantized weights is not supported, or a scale is missing,
            of the wrong shape, or not a finite number above zero.
    """
    files = tuple(files)
    stored = dict(stored_weights(files))
    for key, one in stored.items():
        _require_known_tensor(key, one)
    noted = {name.removesuffix(NOTE) for name in stored if name.endswith(NOTE)}
    noted |= {layer for file in files for layer in _layers_in_metadata(file)}
    scales = _scales(stored)
    weights = {key: one for key, one in stored.items() if not _is_beside(key)}
    if orphans := sorted(scales.keys() - weights.keys()):
        raise CheckpointError(f"{scales[orphans[0]].source} is the scale of {orphans[0]}, which the file does not hold")
    _require_scales(weights, scales, noted, [key for key in stored if key.rpartition(".")[2] == MARKER])
    return {key: _dequantized(one, scales[key]) if key in scales else one for key, one in weights.items()}


def _require_scales(
    weights: Mapping[str, StoredWeight], scales: Container[str], noted: Container[str], markers: Iterable[str]
) -> None:
    """Refuse a weight without the scale that a note, a marker or its namesakes in other layers say it has."""
    marked = tuple(marker.removesuffix(MARKER) for marker in markers)
    scaled = {_without_numbers(key) for key in weights if key in scales}
    for key, one in weights.items():
        if key in scales or one.dtype not in STORED or len(one.shape) < 2:
            continue
        layer = key.removesuffix(".weight").split(".")
        has_note = any(".".join(layer[start:]) in noted for start in range(len(layer)))
        if one.dtype == "I8" or has_note or any(map(key.startswith, marked)) or _without_numbers(key) in scaled:
            raise CheckpointError(f"{one.source} is stored in {one.dtype}, and its scale is missing")


def _is_beside(key: str) -> bool:
    return key.endswith((*SCALES, *UNUSED)) or key.rpartition(".")[2] == MARKER


def _without_numbers(key: str) -> str:
    """Return a key with all layers of a stack as one."""
    return re.sub(r"\d+", "#", key)


def _layers_in_metadata(file: Path) -> list[str]:
    """Return the names of the quantized layers in the metadata of a file, with or without the prefix of its keys."""
    if (text := read_metadata(file).get(METADATA)) is None:
        return []
    try:
        notes = dict(json.loads(text)["layers"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{file}: its metadata {METADATA} cannot be read: {error!r}") from error
    for layer, note in notes.items():
        _require_known(note, f"{layer} in {file}")
    return list(notes)


def _require_known_tensor(key: str, stored: StoredWeight) -> None:
    for suffix, name in OTHER_QUANTIZATION:
        if key.endswith(suffix):
            raise CheckpointError(f"{stored.source}: weights quantized as {name} are not supported; {INSTEAD}")
    if key.endswith(NOTE):
        try:
            note = json.loads(bytes(stored.load().flatten().to(torch.uint8).tolist()))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{stored.source} cannot be read: {error}") from error
        _require_known(note, stored.source)


def _require_known(note: Any, where: str) -> None:
    """Check the format that a note names, itself or under `format`."""
    entries = note if isinstance(note, dict) else {"format": note}
    name, nested = entries.get("format"), entries.get("params")
    if entries.get("convrot") or (isinstance(nested, dict) and nested.get("convrot")):
        name = f"{name} with convrot"
    if name not in FORMATS:
        raise CheckpointError(f"{where}: weights quantized as {name} are not supported; {INSTEAD}")


def _scales(stored: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    """Return the scales by the keys of their weights."""
    scales: dict[str, StoredWeight] = {}
    for key, scale in stored.items():
        if suffix := next((suffix for suffix in SCALES if key.endswith(suffix)), None):
            weight = f"{key.removesuffix(suffix)}.weight"
            if weight in scales:
                raise CheckpointError(f"{scale.source}: {weight} has two scales, also {scales[weight].key}")
            scales[weight] = scale
    return scales


def _dequantized(stored: StoredWeight, scale: StoredWeight) -> Dequantized:
    """Pair a weight with its scale, and check both."""
    if stored.dtype not in STORED:
        raise CheckpointError(f"{stored.source} has a scale, so it must be FP8 or INT8, got {stored.dtype}")
    if scale.dtype not in SCALE_DTYPES:
        raise CheckpointError(
            f"{scale.source} must hold floating point numbers, got {scale.dtype}: weights quantized as mxfp8 are not "
            f"supported; {INSTEAD}"
        )
    if scale.shape not in ((), (1,), (1, 1), (*stored.shape[:1], 1)):
        raise CheckpointError(
            f"{scale.source} must be one number, or one per row, {[*stored.shape[:1], 1]}; got {list(scale.shape)}"
        )
    values = scale.load().float().flatten()
    wrong = values[~(values.isfinite() & (values > 0))]
    if wrong.numel():
        raise CheckpointError(f"{scale.source} must be finite and above zero, got {wrong[0]:g}")
    return Dequantized(stored, scale)
