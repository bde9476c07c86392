"""The least number of GPUs that meets objectives, searched by simulating one number after another.

Knows no server: a function simulates a number of GPUs with a seed of randomness. More GPUs are taken to be never worse,
so numbers are doubled and halved with one seed; the number found must then hold with every seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.workload.figures import RungFigures
from benchmarks.workload.objective import Objective, Result, check


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
        trials: all simulations in their order.
    """

    objectives: Sequence[Objective]
    gpus: int | None
    most: int
    trials: Sequence[Trial]

    def results(self, trial: Trial) -> list[Result]:
        """Compare the objectives with a simulation."""
        return check(self.objectives, trial.figures)

    @property
    def chosen(self) -> list[Trial]:
        """The simulations of the number found; of the largest allowed number if none was found."""
        return [trial for trial in self.trials if trial.gpus == (self.gpus or self.most)]

    @property
    def too_few(self) -> Trial | None:
        """A simulation of one GPU fewer that misses an objective; None if there is none."""
        fewer = [trial for trial in self.trials if self.gpus is not None and trial.gpus == self.gpus - 1]
        return next((trial for trial in fewer if not all(each.is_met for each in self.results(trial))), None)


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

    def between(self, least: int, most: int) -> Sizing:
        """Search the numbers from `least` to `most`; fewer than `least` are known not to suffice."""
        assert 1 <= least <= most, f"{least} to {most} GPUs"
        enough = self._first_enough(least, most)
        while enough is not None and not all(self._is_met(enough, seed) for seed in self.seeds):
            enough = enough + 1 if enough < most else None
        return Sizing(self.objectives, enough, most, list(self._trials.values()))

    def _first_enough(self, least: int, most: int) -> int | None:
        """Return the least number that meets the objectives with the first seed."""
        seed = self.seeds[0]
        too_few, enough = least - 1, least
        while not self._is_met(enough, seed):
            if enough == most:
                return None
            too_few, enough = enough, min(2 * enough, most)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._is_met(middle, seed):
                enough = middle
            else:
                too_few = middle
        return enough

    def _is_met(self, gpus: int, seed: int) -> bool:
        if (gpus, seed) not in self._trials:
            self._trials[gpus, seed] = self.simulate(gpus, seed)
        return all(result.is_met for result in check(self.objectives, self._trials[gpus, seed].figures))
