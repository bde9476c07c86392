"""Which number format each graph computes in.

The residual stream, norms, modulation, rotary embedding and final layer are FP32 in every plan; a precision says
what the large matrix products and attention use. What makes FP16 safe is in `export.precision.fp16`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from engine.errors import BuildError
from engine.plan.manifest import Flavor, GraphName, Precision

TURING = "7.5"  # the one compute capability with FP16 and without BF16
DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def graph_precisions(
    precision: Precision, flavor: Flavor, capabilities: Sequence[str] = ()
) -> dict[GraphName, Precision]:
    """The precision of each graph when the user asks for `precision`, for the GPUs of these compute capabilities.

    The VAE has no FP16: nothing bounds what comes out of its convolutions, and the real one leaves the range. It takes
    BF16, which has FP32's range, or FP32 where there is no BF16: in ONNX Runtime on a CPU and on Turing.
    """
    if flavor == "onnx" and precision == "bf16":
        raise BuildError("ONNX Runtime has no BF16 kernels on a CPU; use --fp32 or --fp16 with --flavor onnx")
    wide: Precision = "fp32" if flavor == "onnx" or TURING in capabilities else "bf16"
    vae_decoder = wide if precision == "fp16" else precision
    return {"prompt_encoder": precision, "denoiser": precision, "vae_decoder": vae_decoder}


def set_dtype(modules: Iterable[Any], precision: Precision) -> None:
    """Gives the linear and convolution layers of the modules, not their norms, the precision's dtype."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(DTYPES[precision])
