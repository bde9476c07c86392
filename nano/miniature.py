"""Write a miniature Z-Image checkpoint: seeded random weights in the layout of Tongyi-MAI/Z-Image-Turbo.

Whatever reads the official checkpoint reads this one: the same files, configuration keys, tensor names and
tokenizer format, only smaller. Equal configurations give equal bytes. The weights are scaled so that
activations stay of order one and pictures are not flat, but nothing is trained: a prompt changes the picture
and means nothing. It does not know diffusers, how a checkpoint is read, or what is done with it.
"""

import argparse
import json
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from diffsynth.models.z_image_dit import ZImageDiT
from safetensors.torch import save
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3Model

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, torch.Tensor]

VERSION = {"_diffusers_version": "0.36.0.dev0"}
LATENT_CHANNELS = 16
BYTE_LEVEL_TOKENS = 512  # 256 bytes and 256 merges
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = (*SPECIAL_TOKENS, "<think>", "</think>")
QWEN_WORDS = (  # the pre-tokenizer's pattern in Qwen 2 and 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role + '\n' + turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER_TEXT = """a red circle on a blue background, a green square above a yellow triangle, a bright arrow
two white stars and three black rings to the left of an orange diamond, purple, pink, brown, grey, cyan, gold
a large cross below a striped heart, a dark hexagon, a small crescent, a photo of an old lighthouse by the sea
mountain, forest, river, bridge, street, market, garden, temple, city, desert, at night, in the morning light
蓝色背景上的红色圆形,黄色三角形上方的绿色正方形,白色星星,黑色圆环,紫色,橙色,灰色
海边的灯塔,山,森林,河流,桥,街道,夜晚的城市,雪中的寺庙,一只猫和一只狗"""


@dataclass(frozen=True, slots=True)
class MiniatureConfig:
    """Sizes of the three models, named as in the official configurations; ValueError where they contradict.

    `cap_feat_dim` is also the hidden size of the text encoder, `sample_size` the picture size in pixels that
    the VAE's configuration names; `shards` splits transformer and text encoder into that many files.
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
    vocab_size: int = 576  # rows of the embedding: more than there are tokens, as in the official checkpoint
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


MINIATURE = MiniatureConfig()


def write_miniature(directory: Path, config: MiniatureConfig = MINIATURE) -> Path:
    """Write the checkpoint into `directory` and return it; FileExistsError unless it is new or empty."""
    if directory.exists() and any(directory.iterdir()):  # earlier shards would be read with the new ones
        raise FileExistsError(f"{directory} must be new or empty")
    for name, content in _configs(config).items():
        _write_json(directory / name, content)
    for component, shapes in tensor_shapes(config).items():
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        shards = 1 if component == "vae" else config.shards
        _write_weights(directory / component / stem, draw_weights(shapes, config), shards)
    _write_tokenizer(directory / "tokenizer")
    return directory


def tensor_shapes(config: MiniatureConfig) -> dict[str, Shapes]:
    """Name and shape of every tensor of `transformer`, `text_encoder` and `vae`, as in the official files."""
    with torch.device("meta"):
        dit = ZImageDiT(**_transformer_config(config))
        text_encoder = Qwen3Model(Qwen3Config(**_text_encoder_config(config)))
    return {
        "transformer": {name: tuple(tensor.shape) for name, tensor in dit.state_dict().items()},
        "text_encoder": {f"model.{name}": tuple(t.shape) for name, t in text_encoder.state_dict().items()},
        "vae": _vae_shapes(config),
    }


def draw_weights(shapes: Shapes, config: MiniatureConfig) -> Weights:
    """Each tensor has a generator of its own, seeded by its name: no tensor depends on its neighbours."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
        weights[name] = _scale(name, torch.randn(shape, generator=generator)).to(dtype)
    return weights


def _scale(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith(".bias"):
        return 0.02 * noise
    if noise.ndim == 1:  # the weight of a norm
        return 1 + 0.1 * noise
    if name.endswith(("pad_token", "embed_tokens.weight")):
        return noise
    gain = 2.0 if "adaLN_modulation" in name else 1.0  # keeps the gates away from zero
    return noise * (gain / math.sqrt(math.prod(noise.shape[1:])))


def _vae_shapes(config: MiniatureConfig) -> Shapes:
    down, up = config.block_out_channels, config.block_out_channels[::-1]
    shapes = _conv("encoder.conv_in", 3, down[0]) | _conv("encoder.conv_out", down[-1], 2 * LATENT_CHANNELS)
    shapes |= _conv("decoder.conv_in", LATENT_CHANNELS, up[0]) | _conv("decoder.conv_out", up[-1], 3)
    shapes |= _mid_block("encoder.mid_block", down[-1]) | _affine("encoder.conv_norm_out", down[-1])
    shapes |= _mid_block("decoder.mid_block", up[0]) | _affine("decoder.conv_norm_out", up[-1])
    shapes |= _blocks("encoder.down_blocks", "downsamplers", down, config.layers_per_block)
    return shapes | _blocks("decoder.up_blocks", "upsamplers", up, config.layers_per_block + 1)


def _blocks(name: str, samplers: str, channels: tuple[int, ...], layers: int) -> Shapes:
    shapes: Shapes = {}
    for i, outputs in enumerate(channels):
        shapes |= _resnets(f"{name}.{i}", layers, channels[max(i - 1, 0)], outputs)
        if i < len(channels) - 1:
            shapes |= _conv(f"{name}.{i}.{samplers}.0.conv", outputs, outputs)
    return shapes


def _mid_block(name: str, channels: int) -> Shapes:
    shapes = _resnets(name, 2, channels, channels) | _affine(f"{name}.attentions.0.group_norm", channels)
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _affine(f"{name}.attentions.0.{projection}", channels, channels)
    return shapes


def _resnets(block: str, count: int, before: int, after: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(count):
        name, inputs = f"{block}.resnets.{i}", after if i else before
        shapes |= _affine(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", inputs, after)
        shapes |= _affine(f"{name}.norm2", after) | _conv(f"{name}.conv2", after, after)
        if inputs != after:
            shapes |= _conv(f"{name}.conv_shortcut", inputs, after, kernel=1)
    return shapes


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Shapes:
    return _affine(name, outputs, inputs, kernel, kernel)


def _affine(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _configs(config: MiniatureConfig) -> dict[str, dict[str, Any]]:
    scheduler, transformer = "FlowMatchEulerDiscreteScheduler", "ZImageTransformer2DModel"
    return {
        "model_index.json": {
            "_class_name": "ZImagePipeline", **VERSION,
            "scheduler": ["diffusers", scheduler], "text_encoder": ["transformers", "Qwen3Model"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"], "transformer": ["diffusers", transformer],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "transformer/config.json": {"_class_name": transformer, **VERSION, **_transformer_config(config)},
        "text_encoder/config.json": _text_encoder_config(config),
        "vae/config.json": {"_class_name": "AutoencoderKL", **VERSION, **_vae_config(config)},
        "scheduler/scheduler_config.json": {
            "_class_name": scheduler, **VERSION, "num_train_timesteps": 1000, "shift": 3.0,
            "use_dynamic_shifting": False,
        },
    }  # fmt: skip


def _transformer_config(config: MiniatureConfig) -> dict[str, Any]:
    return {
        "all_f_patch_size": [1], "all_patch_size": [2], "axes_dims": [*config.axes_dims],
        "axes_lens": [*config.axes_lens], "cap_feat_dim": config.cap_feat_dim, "dim": config.dim,
        "in_channels": LATENT_CHANNELS, "n_heads": config.n_heads, "n_kv_heads": config.n_heads,
        "n_layers": config.n_layers, "n_refiner_layers": config.n_refiner_layers, "norm_eps": 1e-05,
        "qk_norm": True, "rope_theta": 256.0, "t_scale": 1000.0,
    }  # fmt: skip


def _text_encoder_config(config: MiniatureConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": BYTE_LEVEL_TOKENS, "eos_token_id": BYTE_LEVEL_TOKENS + 2,
        "head_dim": config.text_head_dim, "hidden_act": "silu", "hidden_size": config.cap_feat_dim,
        "initializer_range": 0.02, "intermediate_size": config.text_intermediate_size,
        "max_position_embeddings": 40960, "max_window_layers": config.text_layers, "model_type": "qwen3",
        "num_attention_heads": config.text_heads, "num_hidden_layers": config.text_layers,
        "num_key_value_heads": config.text_kv_heads, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": config.dtype, "transformers_version": "4.51.0", "use_cache": True,
        "use_sliding_window": False, "vocab_size": config.vocab_size,
    }  # fmt: skip


def _vae_config(config: MiniatureConfig) -> dict[str, Any]:
    return {
        "act_fn": "silu", "block_out_channels": [*config.block_out_channels],
        "down_block_types": ["DownEncoderBlock2D"] * len(config.block_out_channels), "force_upcast": True,
        "in_channels": 3, "latent_channels": LATENT_CHANNELS, "latents_mean": None, "latents_std": None,
        "layers_per_block": config.layers_per_block, "mid_block_add_attention": True,
        "norm_num_groups": config.norm_num_groups, "out_channels": 3, "sample_size": config.sample_size,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_post_quant_conv": False,
        "up_block_types": ["UpDecoderBlock2D"] * len(config.block_out_channels), "use_quant_conv": False,
    }  # fmt: skip


def _write_weights(stem: Path, weights: Weights, shards: int) -> None:
    """One file, or `shards` files of about equal size and the index that names the file of every tensor."""
    total, offset = sum(tensor.nbytes for tensor in weights.values()), 0
    files: dict[str, Weights] = {}
    for name, tensor in weights.items():
        part = f"-{1 + offset * shards // total:05}-of-{shards:05}" if shards > 1 else ""
        files.setdefault(f"{stem.name}{part}.safetensors", {})[name] = tensor
        offset += tensor.nbytes
    for file, tensors in files.items():  # save_file would make them readable by their owner only
        stem.with_name(file).write_bytes(save(tensors, metadata={"format": "pt"}))
    if shards > 1:
        weight_map = {name: file for file, tensors in files.items() for name in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(stem.with_name(f"{stem.name}.safetensors.index.json"), index)


def _write_tokenizer(folder: Path) -> None:
    tokenizer = _train_tokenizer()
    added = {str(token.pop("id")): token for token in json.loads(tokenizer.to_str())["added_tokens"]}
    content = {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", content)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def _train_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    words = pre_tokenizers.Split(tokenizers.Regex(QWEN_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_TOKENS, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TOKENIZER_TEXT], trainer)
    for token in ADDED_TOKENS:
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in SPECIAL_TOKENS)])
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="nano.miniature", description="Write a miniature checkpoint.")
    parser.add_argument("directory", type=Path, help="a new or empty directory")
    parser.add_argument("--seed", type=int, default=MINIATURE.seed, help="seed of the weights (%(default)s)")
    arguments = parser.parse_args()
    print(write_miniature(arguments.directory, replace(MINIATURE, seed=arguments.seed)))


if __name__ == "__main__":
    main()
