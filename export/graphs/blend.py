"""The blend graph: latents that are drawn anew inside a mask, beside the latents of an image at a noise level.

It has no weights. In a graph of its own, the blend after each inpainted step needs nothing from the host.
"""

import torch
from torch import Tensor

from engine.plan.manifest import TensorSpec
from export.graphs.graph_module import GraphModule


class Blend(GraphModule):
    """The blend of inpainting, in FP32 whatever the precision of the other graphs.

    Args:
        channels: of the latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.precision = "fp32"
        self.weights = {}
        latents = ("batch", channels, "latent_height", "latent_width")
        self.inputs = (
            TensorSpec("latents_to_blend", "float32", latents),
            TensorSpec("image_latents", "float32", latents),
            TensorSpec("noise", "float32", latents),
            TensorSpec("mask", "float32", ("batch", 1, "latent_height", "latent_width")),
            TensorSpec("blend_sigma", "float32", ("batch",)),
        )
        self.outputs = (TensorSpec("latents_blended", "float32", latents),)

    def forward(
        self, latents_to_blend: Tensor, image_latents: Tensor, noise: Tensor, mask: Tensor, blend_sigma: Tensor
    ) -> Tensor:
        """Return `latents_to_blend` where the mask is 1, and (1 - sigma) * image_latents + sigma * noise where it is 0.

        Values are chosen, not weighted: NaN in latents that the mask leaves out does not spread.

        Args:
            latents_to_blend, image_latents, noise: [B, C, h, w] float32.
            mask: [B, 1, h, w] float32 of zeros and ones.
            blend_sigma: [B] float32, noise level of the latents.

        Returns:
            [B, C, h, w] float32.
        """
        sigma = blend_sigma[:, None, None, None]
        return torch.where(mask > 0.5, latents_to_blend, (1 - sigma) * image_latents + sigma * noise)
