"""LoRA files in any of the common key formats, merged into the transformer in FP32.

A key that matches no layer is an error, because a partly applied LoRA would only look like a bad LoRA.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from engine.errors import CheckpointError
from engine.plan.directory import sha256
from engine.plan.lora import FORMATS
from export.checkpoint.comfyui import COMFYUI_NAMES
from export.checkpoint.files import Checkpoint
from export.checkpoint.stored_weights import StoredWeight, read_metadata, stored_weights
from export.checkpoint.weights import Derived, Weight, load_finite

KEY = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<peft>[AB])(?:\.\w+)?\.weight|lora[_.](?P<kohya>down|up)\.weight|(?P<alpha>alpha))"
)
PREFIXES = ("base_model.model.", "model.", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_")
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file and its scale."""

    file: Path
    scale: float = 1.0

    @staticmethod
    def parse(text: str) -> "Lora":
        """Parse FILE or FILE:SCALE. If a file has the whole text as its name, the text has no scale."""
        file, _, scale = text.rpartition(":")
        try:
            return Lora(Path(file), float(scale)) if file and not Path(text).is_file() else Lora(Path(text))
        except ValueError:
            return Lora(Path(text))

    def fingerprint(self) -> str:
        """Return the hex sha256 of the file and of peft's config beside it, if that is used."""
        config = self.file.with_name(PEFT_CONFIG)
        files = [self.file, config] if self.file.name == PEFT_FILE and config.is_file() else [self.file]
        return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Update:
    """A change of factor * up @ down to a weight [out, in]."""

    down: StoredWeight
    up: StoredWeight
    factor: float


@dataclass(frozen=True, slots=True)
class Merged(Derived):
    """A weight plus the updates of LoRAs, in FP32."""

    updates: tuple[Update, ...]

    @property
    def source(self) -> str:
        return " + ".join((self.weight.source, *(update.up.source for update in self.updates)))

    def load(self) -> Tensor:
        merged = self.weight.load().float()
        for update in self.updates:
            merged = merged + update.factor * (update.up.load().float() @ update.down.load().float())
        return merged


def merge(checkpoint: Checkpoint, loras: Iterable[Lora]) -> Checkpoint:
    """Return the checkpoint with LoRAs merged into its transformer.

    Raises:
        CheckpointError: a key matches no layer, or a pair of matrices does not fit its layer.
    """
    stored = checkpoint.transformer.weights
    weights = dict(stored)
    for lora in loras:
        for name, update in _updates(lora, stored).items():
            merged = weights[name]
            updates = merged.updates if isinstance(merged, Merged) else ()
            weights[name] = Merged(stored[name], (*updates, update))
    return replace(checkpoint, transformer=replace(checkpoint.transformer, weights=weights))


def _updates(lora: Lora, weights: Mapping[str, Weight]) -> dict[str, Update]:
    """Return the updates of a LoRA by the official names of the weights."""
    if not math.isfinite(lora.scale):
        raise CheckpointError(f"{lora.file}: its scale must be finite, got {lora.scale}")
    if read_metadata(lora.file).get("format", "").startswith(FORMATS):
        raise CheckpointError(f"{lora.file} is an output of zimage-lora; pass the LoRA that it was made from")
    pairs = _pairs(lora, _weights_by_layer(weights))
    strength = _strength(lora.file)
    updates: dict[str, Update] = {}
    for names, pair in pairs.items():
        for name, update in _pair(lora, names, pair, strength, weights).items():
            if name in updates:
                raise _same_weight(lora, updates[name].up, update.up)
            updates[name] = update
    return updates


def _pairs(lora: Lora, layers: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, StoredWeight]]:
    """Group the tensors of a LoRA by the weights that they change, each group by role: down, up and alpha."""
    pairs: dict[tuple[str, ...], dict[str, StoredWeight]] = {}
    unmatched = []
    for key, stored in stored_weights([lora.file]):
        match = KEY.fullmatch(key)
        layer = _layer(match["layer"], layers) if match else None
        if match is None or layer is None:
            unmatched.append(key)
            continue
        role = "alpha" if match["alpha"] else "down" if match["peft"] == "A" or match["kohya"] == "down" else "up"
        pair = pairs.setdefault(layers[layer], {})
        if role in pair:
            raise _same_weight(lora, pair[role], stored)
        pair[role] = stored
    if unmatched:
        more = f" and {len(unmatched) - NAMES_SHOWN} more" if len(unmatched) > NAMES_SHOWN else ""
        raise CheckpointError(
            f"{lora.file}: {len(unmatched)} of its keys match no layer of this transformer: "
            f"{', '.join(unmatched[:NAMES_SHOWN])}{more}"
        )
    if not pairs:
        raise CheckpointError(f"{lora.file} holds no LoRA")
    return pairs


def _same_weight(lora: Lora, one: StoredWeight, other: StoredWeight) -> CheckpointError:
    return CheckpointError(f"{lora.file}: {one.key} and {other.key} are for the same weight")


def _pair(
    lora: Lora,
    names: tuple[str, ...],
    pair: Mapping[str, StoredWeight],
    strength: "Strength",
    weights: Mapping[str, Weight],
) -> dict[str, Update]:
    """Return the updates of one pair. A fused pair gives several: they share `down` and divide the rows of `up`."""
    joined = " and ".join(names)
    if "down" not in pair or "up" not in pair:
        raise CheckpointError(f"{lora.file}: for {joined} there is no {'up' if 'down' in pair else 'down'} matrix")
    down, up = pair["down"], pair["up"]
    outputs, inputs = sum(weights[name].shape[0] for name in names), weights[names[0]].shape[1]
    rank = down.shape[0] if down.shape else 0
    if rank == 0 or down.shape != (rank, inputs) or up.shape != (outputs, rank):
        raise CheckpointError(
            f"{lora.file}: for {joined} there are matrices {list(down.shape)} and {list(up.shape)}, "
            f"expected [rank, {inputs}] and [{outputs}, rank]"
        )
    for stored in (down, up):
        if not (dtype := stored.load().dtype).is_floating_point:
            raise CheckpointError(f"{stored.source} must hold floating point numbers, got {dtype}")
        load_finite(stored)
    own = _number(pair["alpha"]) if "alpha" in pair else strength.alpha
    alpha = float(rank) if own is None else own
    if not math.isfinite(alpha):
        raise CheckpointError(f"{lora.file}: for {joined} alpha must be finite, got {alpha}")
    factor = lora.scale * alpha / (math.sqrt(rank) if strength.rank_stabilised else rank)
    updates, start = {}, 0
    for name in names:
        rows = weights[name].shape[0]
        share = replace(up, shape=(rows, rank), rows=(start, start + rows)) if len(names) > 1 else up
        updates[name] = Update(down, share, factor)
        start += rows
    return updates


def _number(stored: StoredWeight) -> float:
    tensor = stored.load()
    if tensor.numel() != 1 or tensor.is_complex():
        raise CheckpointError(f"{stored.source} must be one number, got {tensor.dtype} of shape {list(tensor.shape)}")
    return float(tensor)


@dataclass(frozen=True, slots=True)
class Strength:
    """Strength of all pairs of a file: alpha / rank, or alpha / sqrt(rank) if it is rank-stabilised.

    Attributes:
        alpha: None for the rank itself, a strength of 1.
    """

    alpha: float | None = None
    rank_stabilised: bool = False


def _strength(file: Path) -> Strength:
    """Read the strength from adapter_config.json beside peft's file, or from the file's own metadata."""
    config = file.with_name(PEFT_CONFIG)
    source = config if file.name == PEFT_FILE and config.is_file() else file
    try:
        text = config.read_text() if source == config else read_metadata(file).get("lora_adapter_metadata", "{}")
        config_entries = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
        alpha = config_entries.get("lora_alpha")
        found = Strength(None if alpha is None else float(alpha), config_entries.get("use_rslora") or False)
        if not isinstance(found.rank_stabilised, bool):
            raise TypeError(f"use_rslora is {found.rank_stabilised!r}")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{source} does not say how strong the LoRA is: {error}") from error
    for key in ("alpha_pattern", "rank_pattern", "use_dora", "fan_in_fan_out"):
        if config_entries.get(key):
            raise CheckpointError(f"{source} has {key}, which is not supported; merge this LoRA with peft first")
    return found


def _weights_by_layer(weights: Mapping[str, Weight]) -> dict[str, tuple[str, ...]]:
    """Map every name of a layer, in all key formats, to the official names of its weights."""
    layers = [
        name.removesuffix(".weight") for name, w in weights.items() if name.endswith(".weight") and len(w.shape) == 2
    ]
    found: dict[str, tuple[str, ...]] = {layer: (f"{layer}.weight",) for layer in layers}
    for layer in layers:
        comfy = f"{layer}."
        for comfy_name, official in COMFYUI_NAMES:
            comfy = comfy.replace(official, comfy_name)
        found[comfy.removesuffix(".")] = (f"{layer}.weight",)
        if layer.endswith(".to_q"):
            attention = layer.removesuffix(".to_q")
            found[f"{attention}.qkv"] = tuple(f"{attention}.to_{part}.weight" for part in "qkv")
    return found | {name.replace(".", "_"): names for name, names in found.items()}


def _layer(name: str, layers: Mapping[str, tuple[str, ...]]) -> str | None:
    """Remove the prefixes that formats add to a layer's name; None if no known name is left."""
    while name not in layers:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return name
