"""Casts of modules to the number formats that `export.precision.dtypes` chooses."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from engine.plan.manifest import Accumulation, Precision

DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def set_dtype(modules: Iterable[Any], precision: Precision, accumulation: Accumulation = "fp32") -> None:
    """Cast the linear and convolution layers of the modules, not their norms, to the precision's dtype.

    Args:
        accumulation: format in which products of FP16 are summed.
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(DTYPES[precision])
                if precision == "fp16" and accumulation == "fp32":
                    layer.sums = torch.float32  # type: ignore[assignment]  # torch types it as a parameter
