"""Accumulation of torch's FP16 matrix products in FP16, where torch offers it (2.7 and later, cuBLAS)."""

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
