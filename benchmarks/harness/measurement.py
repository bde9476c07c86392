"""How long a contestant takes for one size and batch: its first generating, and then many, in turns with the others.

Time is the host's, from a device that has nothing to do to PNG files in hand, the same way for everybody. Whole
generations, which nothing interrupts, take turns with generations that wait for the device after every stage: stages
are taken from the latter and add up to a little more.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness.device import Device
from benchmarks.harness.distribution import Distribution
from benchmarks.harness.pixels import Pixels
from benchmarks.harness.power import PowerMeter
from benchmarks.harness.runner import STAGES, Laps, Runner
from engine.images.encode import encode
from engine.request import ImageRequest
from engine.size import Size

Figures = dict[str, Any]

SEED = 7
FEWEST = 2  # generations of each kind in a turn, however long they take


@dataclass(frozen=True, slots=True)
class Case:
    """What is generated.

    Attributes:
        prompt_tokens: padded tokens of each prompt.
        prompts: two that take turns, so that nobody has the last one's prompt ready.
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
        """The images of a run; equal runs are equal for everybody."""
        return [ImageRequest(self.prompts[(run + i) % 2], *self.size, SEED + i, self.steps) for i in range(self.batch)]


@dataclass(slots=True)
class Trial:
    """One contestant at one case, as far as it has got."""

    runner: Runner
    case: Case
    device: Device
    first: float = 0.0  # seconds
    images: list[Pixels] = field(default_factory=list)  # of the first generating
    taken: int | None = None  # bytes of GPU memory that generating took beyond what loading did, and keeps
    torch_peak: int | None = None
    error: str | None = None
    _whole: list[float] = field(default_factory=list)
    _stages: list[dict[str, list[float]]] = field(default_factory=list)
    _turns: list[tuple[float, float]] = field(default_factory=list)  # start and end, by time.perf_counter
    _runs: int = 0

    def generate_first(self) -> None:
        """What is paid once per shape, or by the first image of all: compilation, tuning, CUDA graphs."""
        self.device.release()
        before = self.device.used()
        self.first, self.images = self._generate_whole()
        after = self.device.used()
        self.taken = None if before is None or after is None else max(0, after - before)
        self.torch_peak = self.device.peak_allocated()

    def take_turn(self, seconds: float) -> None:
        """Generates once to be warm, then for some seconds and FEWEST times at least."""
        self._generate_whole()
        started, count = time.perf_counter(), 0
        while count < FEWEST or time.perf_counter() < started + seconds:
            self._whole.append(self._generate_whole()[0])
            self._stages.append(self._generate_in_stages())
            count += 1
        self._turns.append((started, time.perf_counter()))

    def figures(self, power: PowerMeter) -> Figures:
        """Seconds, bytes, watts and joules; only the error if there is one."""
        if self.error is not None:
            return {"error": self.error}
        whole = Distribution.of(self._whole)
        found: Figures = {
            "first_s": self.first,
            "end_to_end_s": asdict(whole),
            "per_image_s": whole.p50 / self.case.batch,
            "stages_s": _stages(self._stages, self.case.steps),
        }
        watts = [mean for turn in self._turns if (mean := power.mean(*turn)) is not None]
        if watts:
            found["watts"] = sum(watts) / len(watts)
            found["joules_per_image"] = found["watts"] * found["per_image_s"]
        if self.taken is not None:
            found |= {"generating_bytes": self.taken, "torch_peak_bytes": self.torch_peak}
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
        requests, laps = self._next_requests(), Laps(self.runner.synchronize)
        for image in self.runner.generate(requests, laps):
            encode(image)
        laps("encode", wait=False)
        return laps.seconds

    def _next_requests(self) -> list[ImageRequest]:
        self._runs += 1
        return self.case.requests(self._runs - 1)


def _stages(runs: Sequence[dict[str, list[float]]], steps: int) -> Figures:
    """A distribution per stage of a batch, over all steps for "step", and the median of each step."""
    each_step = [_per_step(run["step"], steps) for run in runs]
    found: Figures = {}
    for stage in STAGES:
        seconds = [s for run in each_step for s in run] if stage == "step" else [sum(run[stage]) for run in runs]
        found[stage] = asdict(Distribution.of(seconds))
    found["each_step_p50"] = [Distribution.of(column).p50 for column in zip(*each_step, strict=True)]
    return found


def _per_step(passes: Sequence[float], steps: int) -> list[float]:
    """Seconds of each step of a batch, whose images may have been generated one after the other."""
    assert passes and len(passes) % steps == 0, f"{len(passes)} forward passes for {steps} steps"
    return [sum(passes[step::steps]) for step in range(steps)]
