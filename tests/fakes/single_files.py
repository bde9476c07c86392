"""The tensors of a checkpoint in the key layouts of single files, as other software writes them."""

import re

import torch

Tensors = dict[str, torch.Tensor]


def comfyui(official: Tensors, prefix: str) -> Tensors:
    """The key layout of ComfyUI's z_image_turbo single files: fused qkv, and its own names."""
    fused: Tensors = {}
    for name, tensor in official.items():
        if ".attention.to_q." in name:
            parts = [official[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            fused[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            fused[name] = tensor
    renamed = {}
    for name, tensor in fused.items():
        comfy = name.replace("all_x_embedder.2-1.", "x_embedder.").replace("all_final_layer.2-1.", "final_layer.")
        comfy = comfy.replace(".to_out.0.", ".out.").replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
        renamed[prefix + comfy] = tensor
    return renamed


def ldm_vae(official: Tensors) -> Tensors:
    """Keys of latent-diffusion and FLUX's `ae.safetensors`, with its levels in reverse and attention by convolution."""
    levels = 1 + max(int(key.split(".")[2]) for key in official if key.startswith("decoder.up_blocks."))
    return {_ldm_name(key, levels): _ldm_tensor(key, tensor) for key, tensor in official.items()}


def _ldm_tensor(key: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None] if ".attentions.0.to_" in key and tensor.ndim == 2 else tensor


def _ldm_name(key: str, levels: int) -> str:
    key = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    key = key.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
    key = key.replace("mid_block.attentions.0.to_", "mid.attn_1.").replace("conv_norm_out", "norm_out")
    key = key.replace("conv_shortcut", "nin_shortcut").replace("down_blocks", "down").replace("resnets", "block")
    key = key.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    return re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", key)


def fp8_scaled(tensors: Tensors, spelling: str) -> tuple[Tensors, Tensors]:
    """Store the matrices of the layers in FP8 with a scale.

    Args:
        spelling: "scale_weight" (with a marker of the file) or "weight_scale" (with a note beside each weight).

    Returns:
        The tensors of the file, and the values that they stand for, both by the keys of `tensors`.
    """
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    stored: Tensors = {}
    values = dict(tensors)
    for key, tensor in tensors.items():
        stored[key] = tensor
        if tensor.ndim == 2 and "layers." in key:
            layer = key.removesuffix(".weight")
            scale = tensor.float().abs().max() / 448
            stored[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            values[key] = stored[key].float() * scale
            stored[f"{layer}.{spelling}"] = scale
            stored[f"{layer}.{'scale_input' if spelling == 'scale_weight' else 'input_scale'}"] = torch.tensor(1.0)
            if spelling == "weight_scale":
                stored[f"{layer}.comfy_quant"] = note.clone()
    if spelling == "scale_weight":
        prefix = "model.diffusion_model." if any(key.startswith("model.diffusion_model.") for key in tensors) else ""
        stored[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return stored, values
