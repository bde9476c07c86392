"""Configs of a Z-Image checkpoint in the official layout, in the real sizes and in small ones.

Keys and class names are those of Tongyi-MAI/Z-Image-Turbo. The module does not know weights or the writing of files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nano.tokenizer import ADDED_TOKENS, BYTE_LEVEL_TOKENS

VERSION = {"_diffusers_version": "0.36.0.dev0"}
LATENT_CHANNELS = 16
Z_IMAGE_NANO = Path(__file__).with_name("z-image-nano")  # the committed result of the recipe


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """Sizes of the three models, named as in the official configs.

    Attributes:
        cap_feat_dim: also the hidden size of the text encoder.
        vocab_size: rows of the embedding; more than there are tokens, as in the official checkpoint.
        sample_size: image size in pixels in the VAE's config.
        shards: number of files of the transformer and of the text encoder.

    Raises:
        ValueError: sizes contradict each other.
    """

    dim: int = 192
    n_heads: int = 6
    n_layers: int = 4
    n_refiner_layers: int = 2
    axes_dims: tuple[int, int, int] = (8, 12, 12)
    axes_lens: tuple[int, int, int] = (1536, 512, 512)
    cap_feat_dim: int = 128
    text_layers: int = 3
    text_heads: int = 4
    text_kv_heads: int = 2
    text_head_dim: int = 32
    text_intermediate_size: int = 384
    vocab_size: int = 768
    block_out_channels: tuple[int, ...] = (32, 64, 64, 64)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    sample_size: int = 256
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if sum(self.axes_dims) * self.n_heads != self.dim:
            raise ValueError(f"axes_dims must add up to {self.dim} / {self.n_heads}, got {self.axes_dims}")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(f"{self.norm_num_groups} groups must divide channels {self.block_out_channels}")
        if self.vocab_size < (tokens := BYTE_LEVEL_TOKENS + len(ADDED_TOKENS)):
            raise ValueError(f"vocab_size must be at least {tokens}, got {self.vocab_size}")


MINIATURE = CheckpointSizes()
NANO = CheckpointSizes(
    n_heads=3,
    n_layers=6,
    axes_dims=(16, 24, 24),
    cap_feat_dim=192,
    text_layers=4,
    text_heads=4,
    text_kv_heads=2,
    text_head_dim=32,
    text_intermediate_size=512,
    block_out_channels=(16, 32, 64, 64),
    norm_num_groups=4,  # 4 channels each, as in the official VAE; a group of 1 would lose its mean, the colour
    dtype="bfloat16",
)
Z_IMAGE_TURBO = CheckpointSizes(
    dim=3840,
    n_heads=30,
    n_layers=30,
    axes_dims=(32, 48, 48),
    cap_feat_dim=2560,
    text_layers=36,
    text_heads=32,
    text_kv_heads=8,
    text_head_dim=128,
    text_intermediate_size=9728,
    vocab_size=151936,
    block_out_channels=(128, 256, 512, 512),
    sample_size=1024,
)


def configs(sizes: CheckpointSizes) -> dict[str, dict[str, Any]]:
    """Return the content of each config file by its path in the checkpoint."""
    scheduler, transformer = "FlowMatchEulerDiscreteScheduler", "ZImageTransformer2DModel"
    return {
        "model_index.json": {
            "_class_name": "ZImagePipeline",
            **VERSION,
            "scheduler": ["diffusers", scheduler],
            "text_encoder": ["transformers", "Qwen3Model"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "transformer": ["diffusers", transformer],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "transformer/config.json": {"_class_name": transformer, **VERSION, **transformer_config(sizes)},
        "text_encoder/config.json": text_encoder_config(sizes),
        "vae/config.json": {"_class_name": "AutoencoderKL", **VERSION, **vae_config(sizes)},
        "scheduler/scheduler_config.json": {
            "_class_name": scheduler,
            **VERSION,
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": False,
        },
    }


def transformer_config(sizes: CheckpointSizes) -> dict[str, Any]:
    return {
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": [*sizes.axes_dims],
        "axes_lens": [*sizes.axes_lens],
        "cap_feat_dim": sizes.cap_feat_dim,
        "dim": sizes.dim,
        "in_channels": LATENT_CHANNELS,
        "n_heads": sizes.n_heads,
        "n_kv_heads": sizes.n_heads,
        "n_layers": sizes.n_layers,
        "n_refiner_layers": sizes.n_refiner_layers,
        "norm_eps": 1e-05,
        "qk_norm": True,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }


def text_encoder_config(sizes: CheckpointSizes) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BYTE_LEVEL_TOKENS,
        "eos_token_id": BYTE_LEVEL_TOKENS + 2,
        "head_dim": sizes.text_head_dim,
        "hidden_act": "silu",
        "hidden_size": sizes.cap_feat_dim,
        "initializer_range": 0.02,
        "intermediate_size": sizes.text_intermediate_size,
        "max_position_embeddings": 40960,
        "max_window_layers": sizes.text_layers,
        "model_type": "qwen3",
        "num_attention_heads": sizes.text_heads,
        "num_hidden_layers": sizes.text_layers,
        "num_key_value_heads": sizes.text_kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": sizes.dtype,
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": sizes.vocab_size,
    }


def vae_config(sizes: CheckpointSizes) -> dict[str, Any]:
    return {
        "act_fn": "silu",
        "block_out_channels": [*sizes.block_out_channels],
        "down_block_types": ["DownEncoderBlock2D"] * len(sizes.block_out_channels),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": sizes.layers_per_block,
        "mid_block_add_attention": True,
        "norm_num_groups": sizes.norm_num_groups,
        "out_channels": 3,
        "sample_size": sizes.sample_size,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_post_quant_conv": False,
        "up_block_types": ["UpDecoderBlock2D"] * len(sizes.block_out_channels),
        "use_quant_conv": False,
    }
