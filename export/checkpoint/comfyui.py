"""Transformer weights in a single file with ComfyUI's keys, under their official names."""

from pathlib import Path

from export.checkpoint.stored_weights import StoredWeight, stored_weights
from export.checkpoint.weights import Weight

# (ComfyUI's name, official name). ComfyUI also stores query, key and value as one tensor: 453 tensors instead of 521.
COMFYUI_NAMES = (
    ("x_embedder.", "all_x_embedder.2-1."),
    ("final_layer.", "all_final_layer.2-1."),
    (".attention.out.", ".attention.to_out.0."),
    (".attention.q_norm.", ".attention.norm_q."),
    (".attention.k_norm.", ".attention.norm_k."),
)
COMFYUI_PREFIX = "model.diffusion_model."
COMFYUI_UNUSED = {"norm_final.weight"}


def official_weights(file: Path) -> dict[str, Weight]:
    """Return the weights of a single-file transformer, in ComfyUI's or the official key layout, by official name."""
    official: dict[str, Weight] = {}
    for key, weight in stored_weights([file]):
        if (name := key.removeprefix(COMFYUI_PREFIX)) not in COMFYUI_UNUSED:
            official |= _official(name, weight)
    return official


def _official(key: str, weight: StoredWeight) -> dict[str, Weight]:
    """Rename one tensor; a fused qkv becomes three row ranges of the same tensor."""
    for comfy, name in COMFYUI_NAMES:
        if key.startswith(comfy) or (comfy.startswith(".") and comfy in key):
            key = key.replace(comfy, name, 1)
    if ".attention.qkv." not in key:
        return {key: weight}
    third = weight.shape[0] // 3
    return {
        key.replace(".qkv.", f".to_{part}."): StoredWeight(
            weight.file, weight.key, (third, *weight.shape[1:]), (i * third, (i + 1) * third)
        )
        for i, part in enumerate("qkv")
    }
