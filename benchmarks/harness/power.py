"""What a GPU draws from the wall while something runs, as far as its driver tells."""

import math
import shutil
import subprocess
import threading
import time
from typing import Self

from benchmarks.harness.device import Device

SAMPLE_MS = 100  # the driver's own figure is a mean over some such time


class PowerMeter:
    """Samples the power of a GPU as long as it is open; on a CPU, or where nvidia-smi does not tell, it has none."""

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
        """Watts between two moments of time.perf_counter(); None if there is no sample."""
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
