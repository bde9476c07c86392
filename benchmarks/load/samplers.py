"""Samples of a server from outside: its Prometheus metrics, the memory of its processes, its machine's GPUs.

A sample that cannot be taken is None; the load test goes on, since a server under load may well not answer.
"""

import http.client
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.nvidia_smi import RepeatedQuery
from benchmarks.load.client.connection import Connection

SCRAPE_SECONDS = 5.0  # limit of one request to /metrics
MEMORY = ("process_resident_memory_bytes", "zimage_worker_process_resident_memory_bytes")
MEBI = 1 << 20  # nvidia-smi's unit of memory
GPU_QUERY = ("index", "name", "utilization.gpu", "memory.used", "power.draw")


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """Content of one answer of /metrics. Counters are totals since the server's start.

    Attributes:
        memory: resident bytes of the server's and its workers' processes; None if it does not say.
        passes: forward passes by batch size.
        pass_seconds: seconds in forward passes by batch size.
        device_seconds: seconds in forward passes by device.
        stages: (seconds, number) of each stage of an image.
    """

    memory: int | None
    passes: Mapping[int, float]
    pass_seconds: Mapping[int, float]
    device_seconds: Mapping[str, float]
    stages: Mapping[str, tuple[float, float]]


def scrape(url: str) -> ServerMetrics | None:
    """Read the metrics of the server at a URL; None if it does not answer with metrics."""
    try:
        with Connection(url) as connection:
            reply = connection.send("GET", "/metrics", None, {}, time.monotonic() + SCRAPE_SECONDS)
            return parse(reply.read().decode()) if reply.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, OverflowError):  # not there, too slow, or no metrics
        return None


def parse(text: str) -> ServerMetrics:
    """Read metrics in Prometheus' text format. Other servers' names are ignored, except for the process's memory."""
    families = text_string_to_metric_families(text)
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)  # by name, then by the only or first label
    for sample in (sample for family in families for sample in family.samples):
        found[sample.name][next(iter(sample.labels.values()), "")] = sample.value
    memory = [value for name in MEMORY for value in found[name].values()]
    counts = found["zimage_stage_seconds_count"]
    return ServerMetrics(
        memory=int(sum(memory)) if memory else None,
        passes=_counts(found["zimage_forward_batch_size_bucket"]),
        pass_seconds={int(batch): value for batch, value in found["zimage_forward_batch_seconds_total"].items()},
        device_seconds=found["zimage_forward_seconds_total"],
        stages={stage: (total, counts.get(stage, 0.0)) for stage, total in found["zimage_stage_seconds_sum"].items()},
    )


def tree_memory(pid: int) -> int | None:
    """Return the resident bytes of a process and all its descendants; None if it has ended.

    Pages that they share count once for each.
    """
    try:
        processes = [root := psutil.Process(pid), *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended since it was listed
            continue
    return total


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One line of nvidia-smi. None stands for what the driver does not tell."""

    at: float  # time.monotonic()
    index: int
    name: str
    utilisation: float | None  # percent
    memory: float | None  # MB
    power: float | None  # watts


class GpuSampler:
    """Samples all GPUs of this machine through nvidia-smi; there are no samples where it is not installed."""

    def __init__(self, interval: float) -> None:
        self.samples: list[GpuSample] = []
        self._query = RepeatedQuery([f"--query-gpu={','.join(GPU_QUERY)}"], interval * 1e3, self._add)

    def __enter__(self) -> Self:
        self._query.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._query.__exit__(*error)

    def _add(self, line: str) -> None:
        fields = line.split(", ")
        if len(fields) == len(GPU_QUERY) and fields[0].isdecimal():  # else a message of the driver
            utilisation, mebi, power = map(_number, fields[2:])
            memory = None if mebi is None else mebi * MEBI / 1e6
            self.samples.append(GpuSample(time.monotonic(), int(fields[0]), fields[1], utilisation, memory, power))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:  # "[N/A]"
        return None
    return value if math.isfinite(value) else None


def _counts(buckets: Mapping[str, float]) -> dict[int, float]:
    """Return the number of observations in each finite bucket of a histogram by its bound."""
    found: dict[int, float] = {}
    before = 0.0
    for bound, total in sorted((float(bound), total) for bound, total in buckets.items()):
        if math.isfinite(bound):
            found[int(bound)] = total - before
            before = total
    return found
