"""Rounding in DiffSynth's modules as plans round: inputs and results of matrix products and convolutions.

It tells what a model makes of rounding errors: some tokens amplify them a hundredfold. Which ones is chance, so there
are several ways to round. Ranges of number formats are not simulated. Knows modules; not models.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from engine.plan.manifest import Precision

T = TypeVar("T")

# Significant bits that remain, of 24. For FP32, whose own rounding would be lost in that of the reference, as in FP16.
BITS: dict[Precision, int] = {"fp32": 11, "fp16": 11, "bf16": 8}
FP32_BITS = 24
ALWAYS_FP32 = "adaLN_modulation"  # in plans of every precision

STRETCHES = (1.0, 1.37)  # numbers are rounded as multiples of these: each gives other errors

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounding to the bits of a precision, after a multiplication by `stretch`, which is then taken back."""

    precision: Precision
    stretch: float = 1.0


def round_products(module: Any) -> None:
    """Let the products of a module round while `rounded_pass` runs with a precision in the same thread."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and ALWAYS_FP32 not in name:
            layer.register_forward_pre_hook(lambda _, inputs: tuple(_rounded(x) for x in inputs))
            layer.register_forward_hook(lambda _, _inputs, output: _rounded(output))


def rounded_pass(rounding: Rounding | None, forward: Callable[[], T]) -> T:
    """Run a forward pass with its products rounded, or without rounding."""
    _thread.rounding = rounding
    try:
        return forward()
    finally:
        _thread.rounding = None


def _rounded(x: torch.Tensor) -> torch.Tensor:
    rounding: Rounding | None = getattr(_thread, "rounding", None)
    if rounding is None:
        return x
    stretched = x * rounding.stretch
    shifted = stretched * (2.0 ** (FP32_BITS - BITS[rounding.precision]) + 1)  # Veltkamp's splitting
    torch.sub(shifted, stretched, out=stretched)  # in place: activations of the VAE take hundreds of megabytes
    return shifted.sub_(stretched).div_(rounding.stretch)
