"""Settings of torch for matrix products on a GPU: FP16 that accumulates in FP16 (torch 2.7 and later), no TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fp16_accumulation() -> Iterator[None]:
    """Let FP16 matrix products on a GPU accumulate in FP16.

    Raises:
        AttributeError: this torch does not offer it.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_accumulation
    matmul.allow_fp16_accumulation = True
    try:
        yield
    finally:
        matmul.allow_fp16_accumulation = before


def without_tf32() -> None:
    """Compute FP32 products and convolutions in FP32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
