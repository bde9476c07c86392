"""The report of a benchmark: its figures with the hardware and versions, as one line of JSON."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.processor import processor_name

LIBRARIES = (
    "torch",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "diffsynth",
    "diffusers",
    "transformers",
    "pillow",
    "isal",
)


def finish(benchmark: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Print the report as the last line of stdout and return it."""
    finished = report(benchmark, figures)
    print(json.dumps(finished))
    return finished


def report(benchmark: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with the hardware and the versions."""
    return {"benchmark": benchmark, "figures": figures, "hardware": hardware(), "versions": versions()}


def hardware() -> dict[str, Any]:
    """Return the processor's name and cores, the memory in GB, and the GPUs if there are any."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"cpu": processor_name(), "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1)}
    gpus = _gpus()
    return found | {"gpus": gpus} if gpus else found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that affect the figures."""
    found = {"python": sys.version}  # with the build: one without profile-guided optimisation is much slower
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_rss() -> int:
    """Return the peak resident set of this process in bytes.

    getrusage's ru_maxrss does not do: on Linux a child inherits its parent's value, even after exec.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("peak memory is measured on Linux only: /proc/self/status has no VmHWM")


class Stopwatch:
    """Seconds since construction."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started


def _gpus() -> list[dict[str, Any]]:
    """Return the GPUs that nvidia-smi lists; empty without nvidia-smi or without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(", ", 2) for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
    return [{"name": name, "driver": driver, "memory_mib": int(mib)} for name, driver, mib in rows]
