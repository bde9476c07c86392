"""The VAE decoder graph: latents to an image of 8 bits per channel.

TensorRT allows UINT8 at the edge of a graph only, so the cast comes last. UINT8 cannot hold NaN, and a clip on a GPU
may turn NaN into 0: the image would be black, without an error. So the graph also returns the mean of the values before
they were clipped, which is NaN or Inf if any of them is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffsynth.models.flux_vae import ResnetBlock, UpSampler
from torch import Tensor, nn

from engine.plan.manifest import Precision, TensorSpec
from export.checkpoint.models import Model
from export.graphs.fused_norm import fused_group_norm
from export.graphs.graph_module import GraphModule
from export.graphs.layers import linear
from export.precision.casts import set_dtype


class VaeDecoder(GraphModule):
    """Decoder of a FLUX-style AutoencoderKL. Norms compute in FP32, convolutions in the dtype of their weights."""

    def __init__(self, vae: Model, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.vae = vae.module
        set_vae_dtype(self.vae, precision)
        self.weights = {f"vae.{name}": weight for name, weight in vae.weights.items()}
        channels = vae.config["latent_channels"]
        self.inputs = (TensorSpec("latents", "float32", ("batch", channels, "latent_height", "latent_width")),)
        self.outputs = (
            TensorSpec("image", "uint8", ("batch", "height", "width", 3)),
            TensorSpec("image_mean", "float32", ("batch",)),
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Decode latents, [B, C, h, w] float32.

        Returns:
            The image, [B, 8h, 8w, 3] uint8, and the mean before clipping, [B] float32, as `quantize` returns them.
        """
        vae = self.vae
        x = conv(latents / vae.scaling_factor + vae.shift_factor, vae.conv_in)
        for block in vae.blocks:
            if isinstance(block, ResnetBlock):
                x = resnet(block, x)
            elif isinstance(block, UpSampler):
                x = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), block.conv)
            else:
                x = spatial_attention(block, x)
        x = conv(F.silu(group_norm(x, vae.conv_norm_out)), vae.conv_out)
        return quantize((x.float() + 1) * 127.5)


def quantize(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Clip values to 0..255, and round them half to even.

    Args:
        pixels: [B, 3, H, W] float32.

    Returns:
        [B, H, W, 3] uint8, and the mean of each image before clipping, [B] float32: NaN or Inf if any value is.
    """
    image = pixels.permute(0, 2, 3, 1).contiguous().clamp(0, 255).round().to(torch.uint8)
    return image, pixels.mean((1, 2, 3))


def set_vae_dtype(vae: nn.Module, precision: Precision) -> None:
    """Cast convolutions and linear layers to the precision's dtype, and norms where that fuses them (`group_norm`)."""
    set_dtype([vae], precision)
    if precision == "bf16":
        for norm in (module for module in vae.modules() if isinstance(module, nn.GroupNorm)):
            norm.to(torch.bfloat16)


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Convolve in the dtype of the layer's weights."""
    return F.conv2d(x.to(layer.weight.dtype), layer.weight, layer.bias, layer.stride, layer.padding)


def group_norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    """Apply GroupNorm in FP32, and return the dtype of its weights.

    In BF16 it is one node, and TensorRT keeps no FP32 tensor at full resolution (docs/findings.md).
    """
    if layer.weight.dtype == torch.bfloat16:
        y: Tensor = fused_group_norm(x, layer.weight, layer.bias, layer.num_groups, layer.eps)
        return y
    return F.group_norm(x.float(), layer.num_groups, layer.weight, layer.bias, layer.eps)


def resnet(block: Any, x: Tensor) -> Tensor:
    """Apply a residual block, [B, C, h, w] -> [B, C', h, w]."""
    y = conv(F.silu(group_norm(x, block.norm1)), block.conv1)
    y = conv(F.silu(group_norm(y, block.norm2)), block.conv2)
    return y + (x if block.conv_shortcut is None else conv(x, block.conv_shortcut))


def spatial_attention(block: Any, x: Tensor) -> Tensor:
    """Attend with a single head over all positions of [B, C, h, w]."""
    attention = block.transformer_blocks[0]
    batch, channels, height, width = x.shape
    tokens = group_norm(x, block.norm).flatten(2).transpose(1, 2)  # [B, h * w, C]
    q, k, v = (linear(tokens, layer)[:, None] for layer in (attention.to_q, attention.to_k, attention.to_v))
    y = linear(F.scaled_dot_product_attention(q, k, v)[:, 0], attention.to_out)
    return x + y.transpose(1, 2).reshape(batch, channels, height, width)
