"""Configurations of a checkpoint that has none: sizes from the tensors, all else as in Z-Image-Turbo."""

from collections.abc import Mapping

from engine.errors import CheckpointError
from export.checkpoint.configs import Config
from export.checkpoint.weights import Weight

Weights = Mapping[str, Weight]


def derive(part: str, weights: Weights) -> Config:
    """Return the configuration of a transformer, text encoder or VAE with these tensors, by their official names.

    Raises:
        CheckpointError: a tensor that a size is read from is missing or has another number of dimensions.
    """
    return {"transformer": _transformer, "text_encoder": _text_encoder, "vae": _vae}[part](weights)


def _transformer(weights: Weights) -> Config:
    dim, patch = _shape(weights, "all_x_embedder.2-1.weight", 2)
    [head_dim] = _shape(weights, "layers.0.attention.norm_q.weight", 1)
    _, cap_feat_dim = _shape(weights, "cap_embedder.1.weight", 2)
    axis = head_dim // 16
    return {
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": [4 * axis, 6 * axis, 6 * axis],  # 32, 48 and 48 of 128
        "axes_lens": [1536, 512, 512],
        "cap_feat_dim": cap_feat_dim,
        "dim": dim,
        "in_channels": patch // 4,
        "n_heads": dim // head_dim,
        "n_kv_heads": dim // head_dim,
        "n_layers": _count(weights, "layers."),
        "n_refiner_layers": _count(weights, "noise_refiner."),
        "norm_eps": 1e-05,
        "qk_norm": True,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }


def _text_encoder(weights: Weights) -> Config:
    vocab_size, hidden_size = _shape(weights, "model.embed_tokens.weight", 2)
    [head_dim] = _shape(weights, "model.layers.0.self_attn.q_norm.weight", 1)
    return {
        "attention_bias": False,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": _shape(weights, "model.layers.0.mlp.gate_proj.weight", 2)[0],
        "model_type": "qwen3",
        "num_attention_heads": _shape(weights, "model.layers.0.self_attn.q_proj.weight", 2)[0] // head_dim,
        "num_hidden_layers": _count(weights, "model.layers."),
        "num_key_value_heads": _shape(weights, "model.layers.0.self_attn.k_proj.weight", 2)[0] // head_dim,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "vocab_size": vocab_size,
    }


def _vae(weights: Weights) -> Config:
    levels = max(1, _count(weights, "decoder.up_blocks."))
    widths = [
        _shape(weights, f"decoder.up_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in reversed(range(levels))
    ]
    return {
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": _shape(weights, "decoder.conv_in.weight", 4)[1],
        "layers_per_block": _count(weights, "decoder.up_blocks.0.resnets.") - 1,
        "mid_block_add_attention": True,
        "norm_num_groups": widths[0] // 4,  # 32 of 128
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def _shape(weights: Weights, name: str, dimensions: int) -> tuple[int, ...]:
    shape = weights[name].shape if name in weights else ()
    if len(shape) != dimensions or 0 in shape:
        got = f"has shape {list(shape)}" if name in weights else "is missing"
        raise CheckpointError(
            f"without a config.json the sizes of a model are those of its tensors, but {name} {got}; add config.json"
        )
    return shape


def _count(weights: Weights, prefix: str) -> int:
    """Return the number of layers whose names begin with a prefix, which are numbered from 0."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)}
    return len(numbers)
