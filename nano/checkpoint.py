"""Writing of a checkpoint in the official layout: configs, weights, tokenizer. It does not know the weights' origin."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from nano.layout import CheckpointSizes, configs
from nano.tokenizer import write_tokenizer

Weights = dict[str, torch.Tensor]


def write_checkpoint(directory: Path, sizes: CheckpointSizes, weights: Mapping[str, Weights]) -> Path:
    """Write a checkpoint and return its directory.

    Args:
        directory: new or empty folder.
        weights: weights of "transformer", "text_encoder" and "vae" by official name.

    Raises:
        FileExistsError: the directory is not empty. Readers would mix its old shards with the new ones.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} must be new or empty")
    for name, content in configs(sizes).items():
        _write_json(directory / name, content)
    dtype: torch.dtype = getattr(torch, sizes.dtype)
    for component, tensors in weights.items():
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        shards = 1 if component == "vae" else sizes.shards
        stored = {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
        _write_weights(directory / component / stem, stored, shards)
    write_tokenizer(directory / "tokenizer")
    return directory


def _write_weights(stem: Path, weights: Weights, shards: int) -> None:
    """Write one file, or `shards` files of about equal size and the index with the file of every tensor."""
    total, offset = sum(tensor.nbytes for tensor in weights.values()), 0
    files: dict[str, Weights] = {}
    for name, tensor in weights.items():
        part = f"-{1 + offset * shards // total:05}-of-{shards:05}" if shards > 1 else ""
        files.setdefault(f"{stem.name}{part}.safetensors", {})[name] = tensor
        offset += tensor.nbytes
    for file, tensors in files.items():  # save_file would make them readable for their owner only
        stem.with_name(file).write_bytes(save(tensors, metadata={"format": "pt"}))
    if shards > 1:
        weight_map = {name: file for file, tensors in files.items() for name in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(stem.with_name(f"{stem.name}.safetensors.index.json"), index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
