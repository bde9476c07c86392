"""The least number of GPUs that meets objectives, searched by simulating one number after another.

Knows no server: a function simulates a number of GPUs with a seed of randomness. More GPUs are taken to be never worse,
so numbers are doubled and halved with one seed; the number found must then hold with every seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.workload.figures import RungFigures
from benchmarks.workload.objective import Objective, Result, check
from engine.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation.

    Attributes:
        busy: share of the GPUs' time in which they compute.
    """

    gpus: int
    seed: int
    figures: RungFigures
    busy: float


Simulate = Callable[[int, int], Trial]  # of a number of GPUs and a seed


@dataclass(frozen=True, slots=True)
class Sizing:
    """Result of a search.

    Attributes:
        gpus: least number that meets the objectives with every seed; None if no allowed number does.
        most: largest number that was allowed.
        trials: all simulations in their order; none if none could suffice.
    """

    objectives: Sequence[Objective]
    gpus: int | None
    most: int
    trials: Sequence[Trial]

    def missed(self, trial: Trial) -> list[Result]:
        """Return the objectives that a simulation misses."""
        return [result for result in check(self.objectives, trial.figures) if not result.is_met]

    @property
    def chosen(self) -> list[Trial]:
        """The simulations of the number found, one for each seed; of the largest allowed number if none was found."""
        return [trial for trial in self.trials if trial.gpus == (self.gpus or self.most)]

    @property
    def too_few(self) -> Trial | None:
        """A simulation of the next smaller number, which misses an objective; None if the number is the least one."""
        fewer = [trial for trial in self.trials if self.gpus is not None and trial.gpus < self.gpus]
        return max(filter(self.missed, fewer), key=lambda trial: trial.gpus, default=None)


def search(
    simulate: Simulate, per_host: int, objectives: Sequence[Objective], seeds: Sequence[int], least: int, most: int
) -> Sizing:
    """Search the fewest GPUs of one machine, and then the fewest whole machines.

    Args:
        per_host: GPUs of a machine.

    Raises:
        InvalidRequest: `least` to `most` is more than one machine, and no whole number of them.
    """
    last = whole_machines(most, per_host)
    if last < least:
        raise InvalidRequest(
            f"{least} to {most} GPUs are no whole number of machines with {per_host} GPUs; "
            f"allow {last} or {last + per_host} (--gpus), or change --gpus-per-host",
            "gpus",
        )
    one = None
    if least <= per_host:
        one = Search(simulate, objectives, seeds).between(least, min(last, per_host))
        if one.gpus is not None or last <= per_host:
            return one
        least = 2 * per_host
    fleet = Search(simulate, objectives, seeds).between(least, last, step=per_host)
    return fleet if one is None else replace(fleet, trials=[*one.trials, *fleet.trials])


def whole_machines(most: int, per_host: int) -> int:
    """Return the largest number of GPUs up to `most` that are a part of one machine or several whole ones."""
    return most // per_host * per_host or most


@dataclass(slots=True)
class Search:
    """A search for the least number of GPUs.

    Args:
        simulate: simulates a number of GPUs with a seed.
        objectives: all of them must be met.
        seeds: the first one searches, all of them confirm.
    """

    simulate: Simulate
    objectives: Sequence[Objective]
    seeds: Sequence[int] = (1, 2, 3)
    _trials: dict[tuple[int, int], Trial] = field(default_factory=dict)

    def between(self, least: int, most: int, step: int = 1) -> Sizing:
        """Search the multiples of `step` from `least` to `most`; smaller numbers are known not to suffice."""
        first, last = math.ceil(least / step), most // step
        assert 1 <= first <= last, f"{least} to {most} GPUs in steps of {step}"
        enough = self._first_enough(first, last, step)
        while enough is not None and not all(self._is_met(enough * step, seed) for seed in self.seeds):
            enough = enough + 1 if enough < last else None
        found = None if enough is None else enough * step
        return Sizing(self.objectives, found, last * step, list(self._trials.values()))

    def _first_enough(self, first: int, last: int, step: int) -> int | None:
        """Return the least number of steps that meets the objectives with the first seed."""
        seed = self.seeds[0]
        too_few, enough = first - 1, first
        while not self._is_met(enough * step, seed):
            if enough == last:
                return None
            too_few, enough = enough, min(2 * enough, last)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._is_met(middle * step, seed):
                enough = middle
            else:
                too_few = middle
        return enough

    def _is_met(self, gpus: int, seed: int) -> bool:
        if (gpus, seed) not in self._trials:
            self._trials[gpus, seed] = self.simulate(gpus, seed)
        return all(result.is_met for result in check(self.objectives, self._trials[gpus, seed].figures))
