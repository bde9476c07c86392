"""A comparison of runners in one process, case by case, in alternating rounds. It does not know the command line."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Self

from benchmarks.harness.arithmetic import Arithmetic, Rates
from benchmarks.harness.device import Device
from benchmarks.harness.measurement import Case, Figures, Measurement
from benchmarks.harness.pixels import decibels
from benchmarks.harness.power import PowerMeter
from benchmarks.harness.report import Stopwatch
from benchmarks.harness.runner import Runner
from engine.errors import ZImageError

ROUNDS = 3  # of every runner at each case
FAILURES = (
    ImportError,
    RuntimeError,
    MemoryError,
    OSError,
    ZImageError,
)  # errors that end one runner, not the comparison


class Comparison:
    """Runners, and the roofline that their times are compared with.

    Attributes:
        runners: loaded runners by name, in the order in which they generate.
        entries: by name, seconds and bytes of loading, or the error of a runner that failed to load.
    """

    def __init__(self, device: Device, arithmetic: Arithmetic, rates: Rates) -> None:
        self.runners: dict[str, Runner] = {}
        self.entries: dict[str, Figures] = {}
        self._device, self._arithmetic, self._rates = device, arithmetic, rates

    def add(self, name: str, load: Callable[[], Runner], *, weights_of: str | None = None) -> None:
        """Load a runner, or record why it failed to load.

        Args:
            weights_of: name of a runner that shares its weights with this one.
        """
        self._device.release()
        before, watch = self._device.used(), Stopwatch()
        try:
            runner = load()
        except FAILURES as error:
            self.entries[name] = {"error": _reason(error)}
            return
        self._device.synchronize()
        self.runners[runner.name] = runner
        self.entries[runner.name] = {"load_s": watch.seconds}
        self._device.release()
        after = self._device.used()
        if before is not None and after is not None:
            shared = self.entries.get(weights_of or "", {}).get("loaded_bytes", 0)
            self.entries[runner.name]["loaded_bytes"] = after - before + shared

    def tokens(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, counted by the first runner."""
        return next(iter(self.runners.values())).tokens(prompt)

    def measure(self, case: Case, seconds: float, power: PowerMeter) -> Figures:
        """Measure every runner at one case.

        Args:
            seconds: time that each runner generates for, without its first image and warm-ups.
        """
        measurements = {name: Measurement(runner, case, self._device) for name, runner in self.runners.items()}
        for measurement in measurements.values():
            _attempt(measurement, measurement.measure_first)
        for _ in range(ROUNDS):
            for measurement in measurements.values():
                _attempt(measurement, partial(measurement.measure_round, seconds / ROUNDS))
        rows = {name: dict(entry) for name, entry in self.entries.items() if "error" in entry}
        floors = self._floors(case)
        for name, measurement in measurements.items():
            rows[name] = measurement.figures(power)
            if measurement.error is None:
                rows[name] |= {"roofline_share": _shares(rows[name], floors)} | self._memory(name, measurement)
        _compare({name: found for name, found in measurements.items() if found.error is None}, rows)
        return {
            "title": case.title,
            "height": case.size.height,
            "width": case.size.width,
            "batch": case.batch,
            "steps": case.steps,
            "prompt_tokens": case.prompt_tokens,
            "roofline_s": floors,
            "runners": rows,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self.runners:
            self.runners.popitem()[1].close()

    def _floors(self, case: Case) -> dict[str, float]:
        work, floor = self._arithmetic, self._rates.floor
        floors = {
            "prompt_encoder": floor(work.prompt_encoder(case.prompt_tokens).batch(case.batch)),
            "step": floor(work.step(case.size.height, case.size.width, case.prompt_tokens).batch(case.batch)),
            "decode": floor(work.decode(case.size.height, case.size.width).batch(case.batch)),
        }
        return {"end_to_end": floors["prompt_encoder"] + case.steps * floors["step"] + floors["decode"], **floors}

    def _memory(self, name: str, measurement: Measurement) -> Figures:
        """Return the bytes of GPU memory of a runner while it generates, weights included; empty on a CPU."""
        loaded = self.entries[name].get("loaded_bytes")
        used = measurement.gpu_bytes
        return {} if loaded is None or used is None else {"memory_bytes": loaded + used}


def _attempt(measurement: Measurement, part: Callable[[], None]) -> None:
    if measurement.error is None:
        try:
            part()
        except FAILURES as error:
            measurement.error = _reason(error)


def _reason(error: BaseException) -> str:
    """Return the error as one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {(error.name or str(error)).partition('.')[0]}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def _shares(row: Figures, floors: Mapping[str, float]) -> dict[str, float]:
    """Return the share of the roofline that each median reaches, 0..1."""
    medians = {"end_to_end": row["end_to_end_s"], **row["stages_s"]}
    return {name: floor / medians[name]["p50"] for name, floor in floors.items()}


def _compare(measurements: Mapping[str, Measurement], rows: Mapping[str, Figures]) -> None:
    """Add the distance of the images from the first runner's (worst of the batch) and the ratio of the times.

    The first runner's own row stays as it is.
    """
    if not measurements:
        return
    reference, *others = measurements
    for name in others:
        pairs = zip(measurements[reference].images, measurements[name].images, strict=True)
        rows[name]["psnr_db"] = min(decibels(a, b) for a, b in pairs)
        own, first = (rows[one]["end_to_end_s"]["p50"] for one in (name, reference))
        rows[name]["times_as_long"] = own / first
