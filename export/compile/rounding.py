"""Rounding in DiffSynth's modules as plans round: inputs and results of matrix products and convolutions.

It tells what a model makes of rounding errors: some tokens amplify them a hundredfold. Ranges of number formats are
not simulated. Knows modules; not models.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from engine.plan.manifest import Precision

T = TypeVar("T")

# Significant bits that remain, of 24. For FP32, whose own rounding would be lost in that of the reference, as in FP16.
BITS: dict[Precision, int] = {"fp32": 11, "fp16": 11, "bf16": 8}
FP32_BITS = 24
ALWAYS_FP32 = "adaLN_modulation"  # in plans of every precision

_thread = threading.local()


def round_products(module: Any) -> None:
    """Let the products of a module round while `rounded_pass` runs with a precision in the same thread."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and ALWAYS_FP32 not in name:
            layer.register_forward_pre_hook(lambda _, inputs: tuple(_rounded(x) for x in inputs))
            layer.register_forward_hook(lambda _, _inputs, output: _rounded(output))


def rounded_pass(precision: Precision | None, forward: Callable[[], T]) -> T:
    """Run a forward pass with products rounded to a precision, or without rounding."""
    _thread.bits = FP32_BITS if precision is None else BITS[precision]
    try:
        return forward()
    finally:
        _thread.bits = FP32_BITS


def _rounded(x: torch.Tensor) -> torch.Tensor:
    bits = getattr(_thread, "bits", FP32_BITS)
    if bits == FP32_BITS:
        return x
    shifted = x * (2.0 ** (FP32_BITS - bits) + 1)  # Veltkamp's splitting
    return shifted - (shifted - x)
