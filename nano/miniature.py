"""Miniature Z-Image checkpoints: seeded random weights in the layout of Tongyi-MAI/Z-Image-Turbo.

A miniature has the files, config keys, tensor names and tokenizer format of the official checkpoint in smaller sizes,
so software for the official checkpoint reads it. Equal sizes give equal bytes. The weights are scaled so that
activations stay of order one and images are not flat. They are not trained: a prompt changes the image, but the image
does not show the prompt.
"""

import math
import zlib
from pathlib import Path

import torch
from diffsynth.models.z_image_dit import ZImageDiT
from transformers import Qwen3Config, Qwen3Model

from nano.checkpoint import Weights, write_checkpoint
from nano.layout import LATENT_CHANNELS, MINIATURE, CheckpointSizes, text_encoder_config, transformer_config

Shapes = dict[str, tuple[int, ...]]


def write_miniature(directory: Path, sizes: CheckpointSizes = MINIATURE) -> Path:
    """Write a miniature into `directory` and return the directory.

    Raises:
        FileExistsError: the directory is not empty.
    """
    weights = {component: random_weights(shapes, sizes) for component, shapes in tensor_shapes(sizes).items()}
    return write_checkpoint(directory, sizes, weights)


def tensor_shapes(sizes: CheckpointSizes) -> dict[str, Shapes]:
    """Return name and shape of every tensor of `transformer`, `text_encoder` and `vae`, as in the official files."""
    with torch.device("meta"):
        dit = ZImageDiT(**transformer_config(sizes))
        text_encoder = Qwen3Model(Qwen3Config(**text_encoder_config(sizes)))
    return {
        "transformer": {name: tuple(tensor.shape) for name, tensor in dit.state_dict().items()},
        "text_encoder": {f"model.{name}": tuple(t.shape) for name, t in text_encoder.state_dict().items()},
        "vae": _vae_shapes(sizes),
    }


def random_weights(shapes: Shapes, sizes: CheckpointSizes, device: str = "cpu") -> Weights:
    """Make random weights in the dtype of the sizes, on the CPU.

    Each tensor has its own generator, seeded by its name, and is independent of the others.

    Args:
        device: torch device that makes them; another one gives other weights.
    """
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{sizes.seed}/{name}".encode()))
        noise = torch.randn(shape, generator=generator, device=device)
        weights[name] = _scale(name, noise).to("cpu", getattr(torch, sizes.dtype))
    return weights


def _scale(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith(".bias"):
        return 0.02 * noise
    if noise.ndim == 1:  # weight of a norm
        return 1 + 0.1 * noise
    if name.endswith(("pad_token", "embed_tokens.weight")):
        return noise
    gain = 2.0 if "adaLN_modulation" in name else 1.0  # keeps the gates away from zero
    return noise * (gain / math.sqrt(math.prod(noise.shape[1:])))


def _vae_shapes(sizes: CheckpointSizes) -> Shapes:
    down, up = sizes.block_out_channels, sizes.block_out_channels[::-1]
    shapes = _conv("encoder.conv_in", 3, down[0]) | _conv("encoder.conv_out", down[-1], 2 * LATENT_CHANNELS)
    shapes |= _conv("decoder.conv_in", LATENT_CHANNELS, up[0]) | _conv("decoder.conv_out", up[-1], 3)
    shapes |= _mid_block("encoder.mid_block", down[-1]) | _affine("encoder.conv_norm_out", down[-1])
    shapes |= _mid_block("decoder.mid_block", up[0]) | _affine("decoder.conv_norm_out", up[-1])
    shapes |= _blocks("encoder.down_blocks", "downsamplers", down, sizes.layers_per_block)
    return shapes | _blocks("decoder.up_blocks", "upsamplers", up, sizes.layers_per_block + 1)


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
