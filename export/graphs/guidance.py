"""The guidance graph: the latents after a guided step, from those under the prompt and under the negative prompt.

It has no weights. Guidance in a graph of its own needs nothing from the host, so a guided step consists of enqueues.
"""

from torch import Tensor

from engine.plan.manifest import TensorSpec
from export.graphs.graph_module import GraphModule


class Guidance(GraphModule):
    """Classifier-free guidance at diffusers' scale, in FP32 whatever the precision of the other graphs.

    Both steps began at the same latents and are linear in velocity, so combining latents combines velocities.

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
            TensorSpec("guidance_scale", "float32", ("batch",)),
        )
        self.outputs = (TensorSpec("latents_guided", "float32", latents),)

    def forward(self, latents_positive: Tensor, latents_negative: Tensor, guidance_scale: Tensor) -> Tensor:
        """Return positive + scale * (positive - negative).

        Args:
            latents_positive, latents_negative: [B, C, h, w] float32.
            guidance_scale: [B] float32.

        Returns:
            [B, C, h, w] float32.
        """
        return latents_positive + guidance_scale[:, None, None, None] * (latents_positive - latents_negative)
