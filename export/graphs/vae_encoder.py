"""The VAE encoder graph: an image of 8 bits per channel to latents of the denoiser.

diffusers samples the encoder's posterior with the request's generator. The sample is drawn on the host, so that a seed
gives diffusers' latents, and the graph scales it.
"""

import torch
import torch.nn.functional as F
from diffsynth.models.flux_vae import DownSampler, ResnetBlock
from torch import Tensor

from engine.plan.manifest import Precision, TensorSpec
from export.checkpoint.models import Model
from export.graphs.graph_module import GraphModule
from export.graphs.vae_decoder import conv, group_norm, resnet, set_vae_dtype, spatial_attention

LOG_VARIANCE = (-30.0, 20.0)  # bounds in diffusers' DiagonalGaussianDistribution


class VaeEncoder(GraphModule):
    """Encoder of a FLUX-style AutoencoderKL. Norms compute in FP32, convolutions in the dtype of their weights."""

    def __init__(self, vae: Model, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.vae = vae.module
        set_vae_dtype(self.vae, precision)
        self.weights = {f"vae.{name}": weight for name, weight in vae.weights.items()}
        self.vae_scale = 2 ** (len(vae.config["block_out_channels"]) - 1)
        latents = ("batch", vae.config["latent_channels"], "latent_height", "latent_width")
        self.inputs = (
            TensorSpec("init_image", "uint8", ("batch", "height", "width", 3)),
            TensorSpec("posterior_noise", "float32", latents),
        )
        self.outputs = (TensorSpec("image_latents", "float32", latents),)

    def forward(self, init_image: Tensor, posterior_noise: Tensor) -> Tensor:
        """Encode images.

        Args:
            init_image: [B, 8h, 8w, 3] uint8, RGB.
            posterior_noise: [B, C, h, w] float32, a standard normal sample; zeros give the mean.

        Returns:
            [B, C, h, w] float32, at the scale of the denoiser's latents.
        """
        vae = self.vae
        x = conv(2 * (init_image.float() / 255).permute(0, 3, 1, 2) - 1, vae.conv_in)  # TensorRT casts UINT8 first
        for block in vae.blocks:
            if isinstance(block, ResnetBlock):
                x = resnet(block, x)
            elif isinstance(block, DownSampler):
                x = conv(F.pad(x, (0, 1, 0, 1)), block.conv)
            else:
                x = spatial_attention(block, x)
        x = conv(F.silu(group_norm(x, vae.conv_norm_out)), vae.conv_out)
        mean, log_variance = x.float().chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE)) * posterior_noise
        scaled: Tensor = (latents - vae.shift_factor) * vae.scaling_factor
        return scaled
