"""Power consumption of a GPU, as its driver reports it."""

import math
import shutil
import subprocess
import threading
import time
from typing import Self

from benchmarks.harness.device import Device

SAMPLE_MS = 100  # about the time that the driver's own figure averages over


class PowerMeter:
    """Samples the power of a GPU while it is open. There are no samples on a CPU or without nvidia-smi."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._samples: list[tuple[float, float]] = []  # time.perf_counter(), watts
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        program = shutil.which("nvidia-smi")
        if self._device.is_gpu and program is not None:
            query = [
                f"--id={self._device.nvidia_smi_id()}",
                "--query-gpu=power.draw",
                "--format=csv,noheader,nounits",
                f"--loop-ms={SAMPLE_MS}",
            ]
            self._process = subprocess.Popen(
                [program, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._reader is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def mean(self, start: float, end: float) -> float | None:
        """Return the mean watts between two values of time.perf_counter(), or None without samples."""
        found = [watts for moment, watts in self._samples if start <= moment <= end]
        return sum(found) / len(found) if found else None

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                watts = float(line)
            except ValueError:  # "[N/A]"
                continue
            if math.isfinite(watts):
                self._samples.append((time.perf_counter(), watts))
