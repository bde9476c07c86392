"""Time of one runner at one size and batch: its first generation, then rounds that alternate with other runners.

Times are the host's, from an idle device to encoded PNG files, in the same way for every runner. Two kinds of
generations alternate: uninterrupted ones give the end-to-end times, and ones that wait for the device after every
stage give the times of stages. Stages therefore add up to slightly more than the end-to-end time.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness.device import Device
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.pixels import Pixels
from benchmarks.harness.power import PowerMeter
from benchmarks.harness.runner import STAGES, Runner, StageTimer
from engine.images.encode import encode
from engine.request import ImageRequest
from engine.size import Size

Figures = dict[str, Any]

SEED = 7
FEWEST = 2  # generations of each kind in a round, however long they take


@dataclass(frozen=True, slots=True)
class Case:
    """One size and batch to measure.

    Attributes:
        steps: forward passes per image.
        prompt_tokens: padded tokens of each prompt.
        prompts: two prompts that alternate, so that no runner can reuse the previous prompt's embedding.
    """

    size: Size
    batch: int
    steps: int
    prompt_tokens: int
    prompts: tuple[str, str]

    @property
    def title(self) -> str:
        return f"{self.size}, batch {self.batch}"

    def requests(self, run: int) -> list[ImageRequest]:
        """Return the requests of a run, the same for every runner."""
        return [ImageRequest(self.prompts[(run + i) % 2], *self.size, SEED + i, self.steps) for i in range(self.batch)]


@dataclass(slots=True)
class Measurement:
    """One runner at one case.

    Attributes:
        first: seconds of the first generation.
        images: images of the first generation.
        gpu_bytes: GPU memory that generating took, and kept, beyond loading; None on a CPU.
        torch_peak: bytes that torch's tensors held at once beyond those that stay; None on a CPU.
        error: first failure; nothing is measured after it.
    """

    runner: Runner
    case: Case
    device: Device
    first: float = 0.0
    images: list[Pixels] = field(default_factory=list)
    gpu_bytes: int | None = None
    torch_peak: int | None = None
    error: str | None = None
    _whole: list[float] = field(default_factory=list)
    _stages: list[dict[str, list[float]]] = field(default_factory=list)
    _rounds: list[tuple[float, float]] = field(default_factory=list)  # start and end, time.perf_counter()
    _runs: int = 0

    def measure_first(self) -> None:
        """Time the first generation, which includes compilation, tuning and capture of CUDA graphs."""
        self.device.release()
        before = self.device.used()
        self.first, self.images = self._generate_whole()
        after = self.device.used()
        self.gpu_bytes = None if before is None or after is None else max(0, after - before)
        self.torch_peak = self.device.peak_allocated()

    def measure_round(self, seconds: float) -> None:
        """Warm up with one generation, then measure for `seconds`, at least FEWEST generations of each kind."""
        self._generate_whole()
        started, count = time.perf_counter(), 0
        while count < FEWEST or time.perf_counter() < started + seconds:
            self._whole.append(self._generate_whole()[0])
            self._stages.append(self._generate_in_stages())
            count += 1
        self._rounds.append((started, time.perf_counter()))

    def figures(self, power: PowerMeter) -> Figures:
        """Return seconds, bytes, watts and joules, or only the error if there is one."""
        if self.error is not None:
            return {"error": self.error}
        whole = Distribution.of(self._whole)
        found: Figures = {
            "first_s": self.first,
            "end_to_end_s": asdict(whole),
            "per_image_s": whole.p50 / self.case.batch,
            "stages_s": _stages(self._stages, self.case.steps),
        }
        watts = [mean for interval in self._rounds if (mean := power.mean(*interval)) is not None]
        if watts:
            found["watts"] = sum(watts) / len(watts)
            found["joules_per_image"] = found["watts"] * found["per_image_s"]
        if self.gpu_bytes is not None:
            found |= {"generating_bytes": self.gpu_bytes, "torch_peak_bytes": self.torch_peak}
        return found

    def _generate_whole(self) -> tuple[float, list[Pixels]]:
        requests = self._next_requests()
        self.runner.synchronize()
        start = time.perf_counter()
        images = self.runner.generate(requests)
        for image in images:
            encode(image)
        return time.perf_counter() - start, images

    def _generate_in_stages(self) -> dict[str, list[float]]:
        requests, timer = self._next_requests(), StageTimer(self.runner.synchronize)
        for image in self.runner.generate(requests, timer):
            encode(image)
        timer.record("encode", wait=False)
        return timer.seconds

    def _next_requests(self) -> list[ImageRequest]:
        self._runs += 1
        return self.case.requests(self._runs - 1)


def _stages(runs: Sequence[dict[str, list[float]]], steps: int) -> Figures:
    """Return a distribution per stage of a batch (of "step" over all steps), and the median of each step."""
    each_step = [_per_step(run["step"], steps) for run in runs]
    found: Figures = {}
    for stage in STAGES:
        seconds = [s for run in each_step for s in run] if stage == "step" else [sum(run[stage]) for run in runs]
        found[stage] = asdict(Distribution.of(seconds))
    found["each_step_p50"] = [Distribution.of(column).p50 for column in zip(*each_step, strict=True)]
    return found


def _per_step(passes: Sequence[float], steps: int) -> list[float]:
    """Return the seconds of each step of a batch, also if its images were generated one after the other."""
    assert passes and len(passes) % steps == 0, f"{len(passes)} forward passes for {steps} steps"
    return [sum(passes[step::steps]) for step in range(steps)]
