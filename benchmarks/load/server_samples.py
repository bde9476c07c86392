"""The server's side of a load test, sampled from its start to its end and summarised for any part of it."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks.harness.server_process import Sampler
from benchmarks.load.samplers import GpuSample, GpuSampler, ServerMetrics, scrape, tree_memory

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MEGA = 1e6


@dataclass(frozen=True, slots=True)
class ServerSample:
    """The server at one moment.

    Attributes:
        at: time.monotonic().
        memory: resident bytes; None if unknown.
        metrics: None if the server did not answer.
    """

    at: float
    memory: int | None
    metrics: ServerMetrics | None


class ServerSamples:
    """Samples a server in threads while the block runs.

    Args:
        url: of the server, without /metrics.
        pid: its process on this machine; None if unknown. Memory is then as /metrics has it.
        interval: seconds between two samples.
    """

    def __init__(self, url: str, pid: int | None = None, interval: float = 1.0) -> None:
        self._url, self._pid = url, pid
        is_here = pid is not None or urlsplit(url).hostname in LOOPBACK  # the GPUs of another machine are out of reach
        self._gpus = GpuSampler(interval) if is_here else None
        self._sampler = Sampler(self._sample, interval)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._sampler.samples.append(self._sample())
        if self._gpus is not None:
            self._stack.enter_context(self._gpus)
        self._stack.enter_context(self._sampler)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._sampler.samples.append(self._sample())

    def figures(self, start: float | None = None, end: float | None = None) -> dict[str, Any] | None:
        """Return the figures between two moments; None if the server told nothing.

        Counters are compared between the last sample before `start` and the first one after `end`.

        Args:
            start, end: time.monotonic(), which all processes of a machine share; None for the first and last sample.
        """
        samples = _between(self._sampler.samples, start, end)
        gpus = [] if self._gpus is None else _gpu_figures(self._gpus.samples, samples[0].at, samples[-1].at)
        memory = [sample.memory / MEGA for sample in samples if sample.memory is not None]
        answers = [(sample.at, sample.metrics) for sample in samples if sample.metrics is not None]
        if not (memory or answers or gpus):
            return None
        return {
            "rss_mb": {"start": memory[0], "end": memory[-1], "max": max(memory)} if memory else None,
            **_metric_figures(answers),
            "gpus": gpus,
            "missed": len(samples) - len(answers),
        }

    def _sample(self) -> ServerSample:
        metrics = scrape(self._url)
        reported = None if metrics is None else metrics.memory
        memory = reported if self._pid is None else tree_memory(self._pid)
        return ServerSample(time.monotonic(), memory, metrics)


def _between(samples: Sequence[ServerSample], start: float | None, end: float | None) -> list[ServerSample]:
    """Return the samples between two moments, with the last one before and the first one after."""
    ordered = list(samples)  # a thread appends
    first = max((index for index, one in enumerate(ordered) if start is not None and one.at <= start), default=0)
    last = min(
        (index for index, one in enumerate(ordered) if end is not None and one.at >= end), default=len(ordered) - 1
    )
    return ordered[first : last + 1]


def _metric_figures(answers: Sequence[tuple[float, ServerMetrics]]) -> dict[str, Any]:
    """Return batches, pass times, stages and the devices' busy share between the first and the last answer."""
    answers = _since_restart(answers)
    if not answers:
        return {"batch": None, "pass_s": None, "stage_s": None, "busy_percent": None}
    (since, before), (until, after) = answers[0], answers[-1]
    passes, seconds = _growth(before.passes, after.passes), _growth(before.pass_seconds, after.pass_seconds)
    busy = sum(after.device_seconds.values()) - sum(before.device_seconds.values())
    elapsed = (until - since) * len(after.device_seconds)
    per_pass = {str(batch): seconds[batch] / count for batch, count in passes.items() if batch in seconds}
    return {
        "batch": _batch_figures(passes) if passes else None,
        "pass_s": {"all": per_pass} if per_pass else None,
        "stage_s": _stage_means(before.stages, after.stages) or None,
        "busy_percent": 100 * busy / elapsed if elapsed else None,
    }


def _since_restart(answers: Sequence[tuple[float, ServerMetrics]]) -> Sequence[tuple[float, ServerMetrics]]:
    """Return the answers after the server's last restart, when its counters began at 0 again."""
    totals = [sum(metrics.device_seconds.values()) for _, metrics in answers]
    last = max((index + 1 for index, (one, next_one) in enumerate(pairwise(totals)) if next_one < one), default=0)
    return answers[last:]


def _batch_figures(passes: Mapping[int, float]) -> dict[str, Any]:
    mean = sum(batch * count for batch, count in passes.items()) / sum(passes.values())
    return {"mean": mean, "counts": {str(batch): int(count) for batch, count in passes.items()}}


def _growth(before: Mapping[int, float], after: Mapping[int, float]) -> dict[int, float]:
    """Return by how much counters grew, without those that did not."""
    grown = {key: total - before.get(key, 0.0) for key, total in after.items()}
    return {key: amount for key, amount in grown.items() if amount > 0}


def _stage_means(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Return the mean seconds of each stage that had any image in between."""
    found = {}
    for stage, (seconds, count) in after.items():
        old_seconds, old_count = before.get(stage, (0.0, 0.0))
        if count > old_count:
            found[stage] = (seconds - old_seconds) / (count - old_count)
    return found


def _gpu_figures(samples: Sequence[GpuSample], start: float, end: float) -> list[dict[str, Any]]:
    """Return the mean utilisation and power and the highest memory of each GPU."""
    found = [sample for sample in samples if start <= sample.at <= end]
    figures = []
    for index in sorted({sample.index for sample in found}):
        own = [sample for sample in found if sample.index == index]
        figures.append(
            {
                "name": own[0].name,
                "utilisation_percent": _known_mean([sample.utilisation for sample in own]),
                "memory_mb": max((sample.memory for sample in own if sample.memory is not None), default=None),
                "power_w": _known_mean([sample.power for sample in own]),
            }
        )
    return figures


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
