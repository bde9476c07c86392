"""The guidance graph: the latents after a guided step, from those under the prompt and under the negative prompt.

It has no weights. Guidance in a graph of its own needs nothing from the host, so a guided step consists of enqueues.
"""

import torch
from torch import Tensor

from engine.plan.manifest import TensorSpec
from export.graphs.graph_module import GraphModule


class Guidance(GraphModule):
    """Classifier-free guidance at diffusers' scale, in FP32 whatever the precision of the other graphs.

    Both steps began at the same latents and are linear in velocity, so combining latents combines velocities, and the
    distance from the latents before is the velocity's norm times the length of the step.

    Args:
        channels: of the latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.precision = "fp32"
        self.weights = {}
        latents = ("batch", channels, "latent_height", "latent_width")
        self.inputs = (
            TensorSpec("latents_positive", "float32", latents),
            TensorSpec("latents_negative", "float32", latents),
            TensorSpec("latents_before", "float32", latents),
            TensorSpec("guidance_scale", "float32", ("batch",)),
            TensorSpec("cfg_normalization", "float32", ("batch",)),
        )
        self.outputs = (TensorSpec("latents_guided", "float32", latents),)

    def forward(
        self,
        latents_positive: Tensor,
        latents_negative: Tensor,
        latents_before: Tensor,
        guidance_scale: Tensor,
        cfg_normalization: Tensor,
    ) -> Tensor:
        """Return positive + scale * (positive - negative), moved towards `latents_before` if it is too far from them.

        Args:
            latents_positive, latents_negative: [B, C, h, w] float32, after the step.
            latents_before: [B, C, h, w] float32, before the step; without effect where `cfg_normalization` is 0.
            guidance_scale: [B] float32.
            cfg_normalization: [B] float32, the greatest distance as a multiple of the positive step's; 0 for no bound.

        Returns:
            [B, C, h, w] float32.
        """
        scale, normalization = guidance_scale[:, None, None, None], cfg_normalization[:, None, None, None]
        guided = latents_positive + scale * (latents_positive - latents_negative)
        change = guided - latents_before
        length, allowed = _norm(change), normalization * _norm(latents_positive - latents_before)
        is_bounded = torch.logical_and(normalization > 0, length > allowed)
        return torch.where(is_bounded, latents_before + change * (allowed / length), guided)


def _norm(values: Tensor) -> Tensor:
    """Return the L2 norm of each sample, [B, 1, 1, 1]."""
    return values.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
