"""Base of the graphs: a traceable forward pass, over DiffSynth's modules if it has weights, with named tensors."""

from collections.abc import Mapping

from torch import nn

from engine.plan.manifest import Precision, TensorSpec
from export.checkpoint.weights import Weight
from export.precision.fp16 import Measured


class GraphModule(nn.Module):
    """A forward pass over the parameters of other modules.

    Attributes:
        precision: precision of the large matrix products.
        inputs, outputs: tensors in the order of `forward`, with the names of the ONNX file and the plan.
        weights: checkpoint tensor of each parameter. Parameters may be on the meta device.
        vae_scale: pixels per latent, of graphs with both.
    """

    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, Weight]
    vae_scale: int = 1

    def measure(self, keys: int | None = None) -> Measured:
        """Read the checkpoint, and return the bounds of FP16 products and the graph's weights.

        Args:
            keys: largest number of tokens that the denoiser attends to; needed where it sums in FP16.
        """
        del keys  # nothing here is summed in FP16
        return Measured((), self.weights)
