"""Power consumption of a GPU, as its driver reports it."""

import math
import time
from typing import Self

from benchmarks.harness.device import Device
from benchmarks.harness.nvidia_smi import RepeatedQuery

SAMPLE_MS = 100  # about the time that the driver's own figure averages over


class PowerMeter:
    """Samples the power of a GPU while it is open. There are no samples on a CPU or without nvidia-smi."""

    def __init__(self, device: Device) -> None:
        self._samples: list[tuple[float, float]] = []  # time.perf_counter(), watts
        self._query = (
            RepeatedQuery([f"--id={device.nvidia_smi_id()}", "--query-gpu=power.draw"], SAMPLE_MS, self._add)
            if device.is_gpu
            else None
        )

    def __enter__(self) -> Self:
        if self._query is not None:
            self._query.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._query is not None:
            self._query.__exit__(*error)

    def mean(self, start: float, end: float) -> float | None:
        """Return the mean watts between two values of time.perf_counter(), or None without samples."""
        found = [watts for moment, watts in self._samples if start <= moment <= end]
        return sum(found) / len(found) if found else None

    def _add(self, line: str) -> None:
        try:
            watts = float(line)
        except ValueError:  # "[N/A]"
            return
        if math.isfinite(watts):
            self._samples.append((time.perf_counter(), watts))
