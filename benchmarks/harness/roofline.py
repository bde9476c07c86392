"""Peak rates of a device, measured with torch: matrix products and copies."""

import time
from collections.abc import Callable

import torch

from benchmarks.harness.arithmetic import Rates
from benchmarks.harness.device import Device

MATRIX_SIDES = {"cuda": (4096, 8192), "cpu": (1024, 2048)}
COPIED = 1 << 30  # bytes, larger than any cache
MEASURED_FOR = 1.0  # seconds per rate


def measure(device: Device, dtype: torch.dtype) -> Rates:
    """Measure the best rate of torch's square matrix products and of copies (bytes read plus bytes written)."""
    rates = []
    for side in MATRIX_SIDES[device.kind]:
        a, b = (torch.randn(side, side, device=device.name).to(dtype) for _ in range(2))
        rates.append(2 * side**3 / _fastest(device, lambda a=a, b=b: a @ b))  # type: ignore[misc]
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    bandwidth = 2 * COPIED / _fastest(device, lambda: target.copy_(source))
    return Rates(max(rates), bandwidth, dtype.itemsize)


def _fastest(device: Device, run: Callable[[], object]) -> float:
    run()
    best, end = float("inf"), time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < end:
        device.synchronize()
        started = time.perf_counter()
        run()
        device.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
