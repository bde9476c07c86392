"""LoRA files in any of the common key formats, merged into the transformer in FP32.

A key that matches no layer is an error, because a partly applied LoRA would only look like a bad LoRA.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from engine.command_line import parse_lora
from engine.errors import CheckpointError
from engine.plan.directory import sha256
from engine.plan.lora import is_prepared
from export.checkpoint.files import Checkpoint
from export.checkpoint.lora_files import keys
from export.checkpoint.lora_files.deltas import Change, Delta
from export.checkpoint.lora_files.layer import LoraLayer, Strength
from export.checkpoint.stored_weights import StoredWeight, read_metadata, stored_weights
from export.checkpoint.weights import Derived, Weight

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAMES_SHOWN = 5
SAME = 1e-2  # relative L2 up to which two changes of one weight count as copies; a BF16 factor is off by up to 2^-8


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file and its strength."""

    file: Path
    scale: float = 1.0

    @staticmethod
    def parse(text: str) -> "Lora":
        """Parse FILE or FILE:STRENGTH. If a file has the whole text as its name, the text has no strength."""
        return Lora(*parse_lora(text))

    def fingerprint(self) -> str:
        """Return the hex sha256 of the file and of peft's config beside it, if that is used."""
        config = self.file.with_name(PEFT_CONFIG)
        files = [self.file, config] if self.file.name == PEFT_FILE and config.is_file() else [self.file]
        return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Merged(Derived):
    """A weight plus the changes of LoRAs, in FP32."""

    changes: tuple[Change, ...]

    @property
    def source(self) -> str:
        return " + ".join((self.weight.source, *(change.source for change in self.changes)))

    def load(self) -> Tensor:
        merged = self.weight.load().float()
        for change in self.changes:
            merged = merged + change.load()
        return merged


def merge(checkpoint: Checkpoint, loras: Iterable[Lora]) -> Checkpoint:
    """Return the checkpoint with LoRAs merged into its transformer.

    Each file's changes are computed from the checkpoint's own weights, so that their order does not matter.

    Raises:
        CheckpointError: a key matches no layer, or tensors do not fit their layer.
    """
    stored = checkpoint.transformer.weights
    weights = dict(stored)
    for lora in loras:
        for name, change in _changes(lora, stored).items():
            merged = weights[name]
            changes = merged.changes if isinstance(merged, Merged) else ()
            weights[name] = Merged(stored[name], (*changes, change))
    return replace(checkpoint, transformer=replace(checkpoint.transformer, weights=weights))


def _changes(lora: Lora, weights: Mapping[str, Weight]) -> dict[str, Change]:
    """Return the changes of a LoRA by the official names of the weights."""
    if not math.isfinite(lora.scale):
        raise CheckpointError(f"{lora.file}: its strength must be finite, got {lora.scale}")
    if is_prepared(lora.file):
        raise CheckpointError(f"{lora.file} is an output of zimage-lora; pass the LoRA that it was made from")
    groups, names = _groups(lora, keys.LayerNames.of(weights))
    strength = _strength(lora.file, any("dora_scale" in group for group in groups.values()))
    changes: dict[str, Change] = {}
    for layer, tensors in groups.items():
        for kind, delta in LoraLayer(lora.file, names[layer], tensors, strength, weights).deltas().items():
            for name, change in _split(lora, [f"{official}.{kind}" for official in names[layer]], delta, weights):
                if name in changes:
                    _require_same(lora, name, changes[name], change)
                else:
                    changes[name] = change
    return changes


def _groups(
    lora: Lora, layers: keys.LayerNames
) -> tuple[dict[str, dict[str, StoredWeight]], dict[str, tuple[str, ...]]]:
    """Group the tensors of a LoRA by the layer as the file names it, each group by role; and name the layers."""
    groups: dict[str, dict[str, StoredWeight]] = {}
    names: dict[str, tuple[str, ...]] = {}
    unmatched = []
    for key, stored in stored_weights([lora.file]):
        if kind := keys.refused_kind(key):
            raise CheckpointError(
                f"{lora.file}: {key} is {kind}, which cannot be merged here; merge it into the checkpoint with the "
                "tool that trained it, and build from that"
            )
        found = keys.split(key)
        official = layers.find(found[0]) if found else None
        if found is None or official is None:
            unmatched.append(key)
            continue
        layer, role = found
        names[layer] = official
        group = groups.setdefault(layer, {})
        if role in group:
            raise CheckpointError(f"{lora.file}: {group[role].key} and {key} are for the same weight")
        group[role] = stored
    if unmatched:
        more = f" and {len(unmatched) - NAMES_SHOWN} more" if len(unmatched) > NAMES_SHOWN else ""
        raise CheckpointError(
            f"{lora.file}: {len(unmatched)} of its keys match no layer of this transformer: "
            f"{', '.join(unmatched[:NAMES_SHOWN])}{more}"
        )
    if not groups:
        raise CheckpointError(f"{lora.file} holds no LoRA")
    return groups, names


def _split(lora: Lora, names: list[str], delta: Delta, weights: Mapping[str, Weight]) -> Iterator[tuple[str, Change]]:
    """Yield the change of each weight of a layer; a fused layer gives several, which divide the rows of the delta."""
    start = 0
    for name in names:
        rows = weights[name].shape[0]
        yield name, Change(delta, lora.scale, (start, start + rows) if len(names) > 1 else None)
        start += rows


def _require_same(lora: Lora, name: str, one: Change, other: Change) -> None:
    """Raise CheckpointError if two entries of a file change one weight in different ways.

    Some trainers write queries, keys and values both fused and one by one; ComfyUI and diffusers use them once.
    """
    first, second = one.load(), other.load()
    if (first - second).norm() > SAME * first.norm():
        raise CheckpointError(
            f"{lora.file}: {one.source} and {other.source} are for the same weight, {name}, but change it differently"
        )


def _strength(file: Path, has_magnitudes: bool) -> Strength:
    """Read the strength from adapter_config.json beside peft's file, or from the file's own metadata.

    Args:
        has_magnitudes: True if the file has the magnitudes of DoRA.
    """
    config = file.with_name(PEFT_CONFIG)
    source = config if file.name == PEFT_FILE and config.is_file() else file
    try:
        text = config.read_text() if source == config else read_metadata(file).get("lora_adapter_metadata", "{}")
        config_entries = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
        kind = config_entries.get("peft_type") or "LORA"
        alpha = config_entries.get("lora_alpha" if kind == "LORA" else "alpha")
        found = Strength(None if alpha is None else float(alpha), config_entries.get("use_rslora") or False)
        if not isinstance(found.rank_stabilised, bool):
            raise TypeError(f"use_rslora is {found.rank_stabilised!r}")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{source} does not say how strong the LoRA is: {error}") from error
    if kind not in ("LORA", "LOHA"):
        raise CheckpointError(f"{source} has the peft_type {kind}, which is not supported; merge it with peft first")
    if config_entries.get("use_dora") and not has_magnitudes:
        raise CheckpointError(
            f"{source} has use_dora, but {file} has no magnitudes; save it again, or merge it with peft"
        )
    for key in ("alpha_pattern", "fan_in_fan_out"):
        if config_entries.get(key):
            raise CheckpointError(f"{source} has {key}, which is not supported; merge this LoRA with peft first")
    return found
