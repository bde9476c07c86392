"""The parts of a single file: transformer, text encoder and VAE, each under a prefix of its own or alone.

ComfyUI writes `model.diffusion_model.`, `text_encoders.<name>.transformer.` and `vae.`; other tools write others. A
part is found by one tensor that only it has, and what stands before that tensor's name is the prefix.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from engine.errors import CheckpointError
from export.checkpoint.comfyui import official_weights
from export.checkpoint.scaled_weights import FileWeight
from export.checkpoint.single_file.ldm_vae import official_vae_weights
from export.checkpoint.weights import Weight

ANCHORS = {
    "transformer": re.compile(r"((?:.+\.)?)(?:x_embedder|all_x_embedder\.2-1)\.weight"),
    "text_encoder": re.compile(r"((?:.+?\.)??)(?:model\.)?embed_tokens\.weight"),
    "vae": re.compile(r"((?:.+\.)?)decoder\.conv_in\.weight"),
}
NAMES_SHOWN = 3


def split(file: Path, weights: Mapping[str, FileWeight]) -> dict[str, dict[str, Weight]]:
    """Return the weights of each part that a file holds, by their official names.

    Raises:
        CheckpointError: the file holds a part twice, or parts that no prefix tells apart.
    """
    prefixes: dict[str, str] = {}
    for part, anchor in ANCHORS.items():
        found = sorted({match[1] for key in weights if (match := anchor.fullmatch(key))})
        if len(found) > 1:
            raise CheckpointError(f"{file} holds more than one {part}: {', '.join(map(repr, found))}")
        prefixes |= {part: found[0]} if found else {}
    if len(set(prefixes.values())) < len(prefixes):
        raise CheckpointError(f"{file} holds {' and '.join(prefixes)} whose keys have no prefix to tell them apart")
    parts: dict[str, dict[str, FileWeight]] = {part: {} for part in prefixes}
    for key, weight in weights.items():
        owners = [part for part, prefix in prefixes.items() if key.startswith(prefix)]
        if owners:  # tensors that no part owns belong to what an image does not need
            owner = max(owners, key=lambda part: len(prefixes[part]))
            parts[owner][key.removeprefix(prefixes[owner])] = weight
    return {part: official(part, owned) for part, owned in parts.items()}


def official(part: str, weights: Mapping[str, FileWeight]) -> dict[str, Weight]:
    """Return the weights of one part by their official names, from any key layout that is known."""
    if part == "transformer":
        return official_weights(weights)
    return official_vae_weights(weights) if part == "vae" else _official_text_encoder(weights)


def transformer_of(file: Path, weights: Mapping[str, FileWeight]) -> dict[str, Weight]:
    """Return the transformer of a file.

    Raises:
        CheckpointError: the file holds none.
    """
    parts = split(file, weights)
    if "transformer" in parts:
        return parts["transformer"]
    if any(".lora_" in key or ".hada_" in key or ".lokr_" in key for key in weights):
        raise CheckpointError(f"{file} is a LoRA and no transformer; pass it with --lora")
    held = " and ".join(parts) or f"tensors such as {', '.join(list(weights)[:NAMES_SHOWN]) or 'none'}"
    raise CheckpointError(f"{file} holds no transformer of Z-Image, which has a tensor x_embedder.weight; got {held}")


def _official_text_encoder(weights: Mapping[str, FileWeight]) -> dict[str, Weight]:
    """Add the prefix `model.`, which current transformers leave out when they save Qwen3 without its head."""
    official: dict[str, Weight] = {}
    for key, weight in weights.items():
        name = key if key.startswith(("model.", "lm_head.")) else f"model.{key}"
        if name in official:
            raise CheckpointError(f"{weight.source} and {official[name].source} are both {name}")
        official[name] = weight
    return official
