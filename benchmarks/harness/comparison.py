"""Everybody who generates in one process, measured case by case in a fixed order, in turns. Knows no command line."""

from collections.abc import Callable, Mapping
from typing import Self

from benchmarks.harness.device import Device
from benchmarks.harness.measurement import Case, Figures, Trial
from benchmarks.harness.pixels import decibels
from benchmarks.harness.power import PowerMeter
from benchmarks.harness.report import Stopwatch
from benchmarks.harness.roofline import Arithmetic, Rates
from benchmarks.harness.runner import Runner
from engine.errors import ZImageError

TURNS = 3  # of everybody at each case
FAILURES = (ImportError, RuntimeError, MemoryError, OSError, ZImageError)  # what costs a row and not the run


class Comparison:
    """Who takes part, and what their times are held against.

    Attributes:
        contestants: those that could be loaded, by name, in the order in which they generate.
        entries: seconds and bytes of loading each, or why it takes no part.
    """

    def __init__(self, device: Device, arithmetic: Arithmetic, rates: Rates) -> None:
        self.runners: dict[str, Runner] = {}
        self.entries: dict[str, Figures] = {}
        self._device, self._arithmetic, self._rates = device, arithmetic, rates

    def enter(self, name: str, load: Callable[[], Runner], *, weights_of: str | None = None) -> None:
        """Loads a contestant, or writes down why it cannot take part.

        Args:
            weights_of: the name of one whose weights it shares, so that loading it takes no memory.
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
        """Of a prompt, as the first contestant counts."""
        return next(iter(self.runners.values())).tokens(prompt)

    def measure(self, case: Case, seconds: float, power: PowerMeter) -> Figures:
        """Everybody at one case.

        Args:
            seconds: for which each contestant generates, first image and warm-up apart.
        """
        trials = {name: Trial(runner, case, self._device) for name, runner in self.runners.items()}
        for trial in trials.values():
            _attempt(trial, trial.generate_first)
        for _ in range(TURNS):
            for trial in trials.values():
                _attempt(trial, lambda trial=trial: trial.take_turn(seconds / TURNS))  # type: ignore[misc]
        rows = {name: dict(entry) for name, entry in self.entries.items() if "error" in entry}
        floors = self._floors(case)
        for name, trial in trials.items():
            rows[name] = trial.figures(power)
            if trial.error is None:
                rows[name] |= {"roofline_share": _shares(rows[name], floors)} | self._memory(name, trial)
        _compare({name: trial for name, trial in trials.items() if trial.error is None}, rows)
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

    def _memory(self, name: str, trial: Trial) -> Figures:
        """Bytes of GPU memory of a contestant while it generates, weights and all."""
        loaded = self.entries[name].get("loaded_bytes")
        return {} if loaded is None or trial.taken is None else {"memory_bytes": loaded + trial.taken}


def _attempt(trial: Trial, part: Callable[[], None]) -> None:
    if trial.error is None:
        try:
            part()
        except FAILURES as error:
            trial.error = _reason(error)


def _reason(error: BaseException) -> str:
    """One line."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {(error.name or str(error)).partition('.')[0]}"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def _shares(row: Figures, floors: Mapping[str, float]) -> dict[str, float]:
    """How much of the roofline the medians reach; 1 would be all of it."""
    medians = {"end_to_end": row["end_to_end_s"], **row["stages_s"]}
    return {name: floor / medians[name]["p50"] for name, floor in floors.items()}


def _compare(trials: Mapping[str, Trial], rows: Mapping[str, Figures]) -> None:
    """Adds how far the images are from the first contestant's, the worst of the batch, and how much longer they take.

    Nothing is added to the first one's own row.
    """
    if not trials:
        return
    reference, *others = trials
    for name in others:
        pairs = zip(trials[reference].images, trials[name].images, strict=True)
        rows[name]["psnr_db"] = min(decibels(a, b) for a, b in pairs)
        own, first = (rows[one]["end_to_end_s"]["p50"] for one in (name, reference))
        rows[name]["times_as_long"] = own / first
