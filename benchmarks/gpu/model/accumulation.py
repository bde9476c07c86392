"""Settings of torch for matrix products on a GPU: FP16 that accumulates in FP16 (torch 2.7 and later), no TF32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


def fp16_accumulation() -> AbstractContextManager[None]:
    """Let FP16 matrix products on a GPU accumulate in FP16.

    Raises:
        AttributeError: this torch does not offer it.
    """
    return _matmul_setting("allow_fp16_accumulation", True)


def fp16_reduction(allowed: bool) -> AbstractContextManager[None]:
    """Let FP16 matrix products add partial results up in FP16, or not. PyTorch does by default."""
    return _matmul_setting("allow_fp16_reduced_precision_reduction", allowed)


def without_tf32() -> None:
    """Compute FP32 products and convolutions in FP32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def _matmul_setting(name: str, value: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)
