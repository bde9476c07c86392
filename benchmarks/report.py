"""How a benchmark ends: figures with the hardware and versions they were measured on, as one line of JSON."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "diffsynth", "diffusers")


def finish(benchmark: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Prints the report as the last line of stdout and returns it."""
    report = {"benchmark": benchmark, "figures": figures, "hardware": hardware(), "versions": versions()}
    print(json.dumps(report))
    return report


def hardware() -> dict[str, Any]:
    """The processor's name and cores, and the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory_gb": round(memory / 1e9, 1)}


def versions() -> dict[str, str]:
    """Python and the libraries that have a say in the figures, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_rss() -> int:
    """The largest resident set of this process so far, in bytes.

    Not getrusage's ru_maxrss: on Linux a child starts with its parent's, exec or not.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("peak memory is measured on Linux only: /proc/self/status has no VmHWM")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
