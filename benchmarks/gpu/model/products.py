"""The part `products`: matrix products and attention on the device against float64, by precision and accumulation."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.findings import Figures, Findings, Settings
from benchmarks.gpu.model.accumulation import fp16_accumulation, without_tf32

INNER = (3840, 10240)  # of Z-Image-Turbo's matrix products
ROWS = 512
HEAD_DIM = 128


def products(settings: Settings, found: Findings) -> None:
    """Measure relative L2 of products with random numbers, and of attention with random and with one-signed values."""
    without_tf32()
    device = settings.device
    cases: dict[str, Callable[[], Figures]] = {}
    for inner in (64, 256) if settings.quick else INNER:
        cases[f"product of {inner}"] = partial(_product, device, inner)
    for tokens in (64, 128) if settings.quick else (4096, 16384):
        cases[f"attention over {tokens}"] = partial(_attention, device, tokens)
    found.add_cases(cases)
    found.answer(
        "; ".join(
            f"{name}: " + ", ".join(f"{key} {value:.1e}" for key, value in found.figures[name].items())
            for name in cases
            if name.startswith("product")
        )
    )


def _product(device: str, inner: int) -> Figures:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(ROWS, inner, generator=generator).to(device) for _ in range(2))
    found: Figures = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        found[name] = _product_error(a.to(dtype), b.to(dtype))
    if device == "cuda":
        with fp16_accumulation():
            found["fp16, accumulates in fp16"] = _product_error(a.half(), b.half())
    return found


def _product_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return relative_l2(a @ b.T, a.double() @ b.double().T)


def _attention(device: str, tokens: int) -> Figures:
    """Return errors of fused attention; one-signed values of 8 add up to 8 times the tokens before they are divided."""
    generator = torch.Generator().manual_seed(0)
    q, k, noise = (torch.randn(1, 2, tokens, HEAD_DIM, generator=generator).to(device) for _ in range(3))
    q = q[:, :, :ROWS]
    found: Figures = {}
    for values, v in (("random", noise), ("one sign", 8 + noise)):
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            query, key, value = (x.to(dtype) for x in (q, k, v))
            exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
            found[f"{name}, {values}"] = relative_l2(F.scaled_dot_product_attention(query, key, value), exact)
    return found


def relative_l2(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Return ||got - exact|| / ||exact||, Inf if a value is not finite."""
    error = float((got.double() - exact).norm() / exact.norm())
    return error if error == error else float("inf")
