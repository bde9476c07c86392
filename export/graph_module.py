"""What the three graphs have in common: a traceable forward over DiffSynth's modules, and its vocabulary."""

from collections.abc import Mapping

from torch import nn

from engine.manifest import TensorSpec
from export.checkpoint import Weight


class GraphModule(nn.Module):
    """Owns a forward pass, borrows the modules whose parameters it runs on.

    Attributes:
        inputs, outputs: its tensors, in the order of `forward`; also those of the ONNX file and the plan.
        weights: the tensor of the checkpoint behind each parameter. Parameters may live on the meta device.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, Weight]
