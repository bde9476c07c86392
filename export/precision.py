"""Which number format each graph computes in.

The residual stream, norms, modulation, rotary embedding and final layer are FP32 in every plan; a precision says
what the large matrix products and attention use.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from engine.errors import BuildError
from engine.manifest import Flavor, GraphName, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def graph_precisions(precision: Precision, flavor: Flavor) -> dict[GraphName, Precision]:
    """The precision of each graph when the user asks for `precision`.

    FP16 is for the denoiser alone: Qwen3's outliers and the FLUX VAE leave its range on the real weights, so they
    take BF16, which has FP32's range. ONNX Runtime has no BF16 kernels on a CPU; there they take FP32.
    """
    if flavor == "onnx" and precision == "bf16":
        raise BuildError("ONNX Runtime has no BF16 kernels on a CPU; use --fp32 or --fp16 with --flavor onnx")
    wide: Precision = "fp32" if flavor == "onnx" else "bf16"
    others = wide if precision == "fp16" else precision
    return {"prompt_encoder": others, "denoiser": precision, "vae_decoder": others}


def set_dtype(modules: Iterable[Any], precision: Precision) -> None:
    """Gives the linear and convolution layers of the modules, not their norms, the precision's dtype."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(DTYPES[precision])
