"""What the three graphs have in common: a traceable forward over DiffSynth's modules, and its vocabulary."""

from collections.abc import Mapping

from torch import nn

from engine.plan.manifest import Precision, TensorSpec
from export.checkpoint.weights import Weight
from export.precision.fp16 import Measured


class GraphModule(nn.Module):
    """Owns a forward pass, borrows the modules whose parameters it runs on.

    Attributes:
        precision: of its large matrix products.
        inputs, outputs: its tensors, in the order of `forward`; also those of the ONNX file and the plan.
        weights: the tensor of the checkpoint behind each parameter. Parameters may live on the meta device.
    """

    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, Weight]

    def measure(self) -> Measured:
        """Bounds of what is in FP16, and the graph's weights as they respect them. Reads the checkpoint."""
        return Measured((), self.weights)
