"""Transformer weights with ComfyUI's keys, under their official names."""

from collections.abc import Mapping

from engine.errors import CheckpointError
from export.checkpoint.scaled_weights import FileWeight
from export.checkpoint.weights import Weight

# (ComfyUI's name, official name). ComfyUI also stores query, key and value as one tensor: 453 tensors instead of 521.
COMFYUI_NAMES = (
    ("x_embedder.", "all_x_embedder.2-1."),
    ("final_layer.", "all_final_layer.2-1."),
    (".attention.out.", ".attention.to_out.0."),
    (".attention.q_norm.", ".attention.norm_q."),
    (".attention.k_norm.", ".attention.norm_k."),
)
COMFYUI_UNUSED = {"norm_final.weight"}


def official_weights(weights: Mapping[str, FileWeight]) -> dict[str, Weight]:
    """Return a transformer's weights, in ComfyUI's or the official key layout, by their official names."""
    official: dict[str, Weight] = {}
    for key, weight in weights.items():
        for name, part in _official(key, weight).items() if key not in COMFYUI_UNUSED else ():
            if name in official:
                raise CheckpointError(f"{weight.source} and {official[name].source} are both {name}")
            official[name] = part
    return official


def _official(key: str, weight: FileWeight) -> dict[str, Weight]:
    """Rename one tensor; a fused qkv becomes three row ranges of the same tensor."""
    for comfy, name in COMFYUI_NAMES:
        if key.startswith(comfy) or (comfy.startswith(".") and comfy in key):
            key = key.replace(comfy, name, 1)
    if ".attention.qkv." not in key:
        return {key: weight}
    rows = weight.shape[0] if weight.shape else 0
    if rows == 0 or rows % 3:
        raise CheckpointError(f"{weight.source} must hold query, key and value, got shape {list(weight.shape)}")
    third = rows // 3
    return {
        key.replace(".qkv.", f".to_{part}."): weight.row_range(i * third, (i + 1) * third)
        for i, part in enumerate("qkv")
    }
