"""The search for the least number of GPUs, with a queue whose answer a simple search confirms."""

import pytest
from fakes.gpu_queue import GpuQueue

from benchmarks.capacity.fleet_costs import FleetCosts
from benchmarks.capacity.settings import Settings, unfinished
from benchmarks.capacity.sizing import Search, Simulate, Trial, search
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.objective import Objective, check
from benchmarks.workload.records import Record
from engine.errors import InvalidRequest

OBJECTIVES = Objective.parse_all("p95=2s,success=99.9")
SEEDS = (1, 2, 3)


@pytest.mark.parametrize("rate", [0.2, 3.0, 8.0])
def test_fewest_gpus_are_those_that_counting_up_finds(rate: float) -> None:
    queue = GpuQueue(rate, service=1.0)
    counted = next(
        gpus
        for gpus in range(1, 65)
        if all(result.is_met for seed in SEEDS for result in check(OBJECTIVES, queue(gpus, seed).figures))
    )
    assert Search(queue, OBJECTIVES, SEEDS).between(1, 64).gpus == counted


def step_at(needed: int) -> Simulate:
    """Return a simulation whose requests take 1 s with enough GPUs, else 3 s."""

    def simulate(gpus: int, seed: int) -> Trial:
        seconds = 1.0 if gpus >= needed else 3.0
        records = [Record("square", at, at, at + seconds, "ok", images=1) for at in (0.0, 1.0)]
        return Trial(gpus, seed, RungFigures.of(records, 10.0), 1.0)

    return simulate


@pytest.mark.parametrize("needed", range(1, 34))
def test_search_finds_every_threshold_without_trying_more_than_twice_as_many(needed: int) -> None:
    sizing = Search(step_at(needed), Objective.parse_all("p50=2s"), (1,)).between(1, 64)
    assert sizing.gpus == needed
    assert max(trial.gpus for trial in sizing.trials) < 2 * needed or needed == 1


@pytest.mark.parametrize(("needed", "found"), [(3, 3), (4, 4), (5, 8), (8, 8), (9, 12)])
def test_more_gpus_than_a_machine_has_are_whole_machines(needed: int, found: int) -> None:
    simulated = []

    def simulate(gpus: int, seed: int) -> Trial:
        simulated.append(gpus)
        return step_at(needed)(gpus, seed)

    sizing = search(simulate, 4, Objective.parse_all("p50=2s"), (1,), 1, 33)
    assert sizing.gpus == found
    assert all(gpus <= 4 or gpus % 4 == 0 for gpus in simulated)
    assert sizing.too_few is None or sizing.too_few.gpus < found


def test_bounds_without_a_whole_machine_are_refused() -> None:
    with pytest.raises(
        InvalidRequest,
        match=r"5 to 7 GPUs are no whole number of machines with 4 GPUs; allow 4 or 8 \(--gpus\), or change",
    ):
        search(step_at(1), 4, Objective.parse_all("p50=2s"), (1,), 5, 7)


def test_search_simulates_few_numbers_and_none_twice() -> None:
    queue = GpuQueue(40.0, service=1.0, seconds=60.0)
    sizing = Search(queue, OBJECTIVES, SEEDS).between(1, 1024)
    assert sizing.gpus is not None and 40 <= sizing.gpus < 60
    assert len(queue.simulated) == len(set(queue.simulated)) < 20


def test_number_that_holds_with_one_seed_only_is_not_enough() -> None:
    first, *_ = SEEDS
    queue = GpuQueue(3.0, service=1.0, seconds=120.0)
    with_one = Search(queue, OBJECTIVES, (first,)).between(1, 64).gpus
    unlucky = GpuQueue(3.0, service=1.0, seconds=120.0)

    def simulate(gpus: int, seed: int) -> Trial:
        unlucky.rate = 3.0 if seed == first else 5.0
        return unlucky(gpus, seed)

    with_all = Search(simulate, OBJECTIVES, SEEDS).between(1, 64).gpus
    assert with_one is not None and with_all is not None and with_all > with_one


def test_service_longer_than_the_objective_has_no_number_of_gpus() -> None:
    queue = GpuQueue(0.5, service=3.0)
    sizing = Search(queue, OBJECTIVES, SEEDS).between(1, 32)
    assert sizing.gpus is None
    assert {trial.gpus for trial in sizing.chosen} == {32}


def test_sizing_shows_what_one_gpu_fewer_misses() -> None:
    sizing = Search(GpuQueue(3.0, service=1.0), OBJECTIVES, SEEDS).between(1, 64)
    assert sizing.too_few is not None
    assert [result.objective.name for result in sizing.missed(sizing.too_few)] == ["p95"]


def test_costs_are_gpu_hours_over_images() -> None:
    costs = FleetCosts.steady(4, images_per_second=2.0, price=0.9, watts=72)
    assert costs.per_thousand_images == pytest.approx(4 * 0.9 / 7.2)
    assert costs.kilowatt_hours_per_thousand_images == pytest.approx(4 * 0.072 / 7.2)


def test_costs_without_price_or_images_are_unknown() -> None:
    assert FleetCosts.steady(4, 2.0, None, None).per_thousand_images is None
    assert FleetCosts.steady(4, 0.0, 0.9, 72).per_thousand_images is None


def test_queue_holds_what_is_drawn_within_the_objective() -> None:
    """Four GPUs draw 4 images a second, so with 8 jobs before it a job ends after 2 s."""
    sizing = Search(GpuQueue(2.5, service=1.0), OBJECTIVES, SEEDS).between(4, 4)
    assert sizing.gpus == 4
    settings = Settings.of(sizing, least=1, load_seconds=60.0)
    longest = max(trial.figures.latency_s.max or 0.0 for trial in sizing.chosen)
    assert settings.queue == pytest.approx(4 * max(2.0, longest), abs=1.5)
    assert (settings.least, settings.most, settings.cool_down) == (1, 4, 120.0)


def test_queue_has_room_for_every_user() -> None:
    sizing = Search(GpuQueue(0.5, service=1.0), OBJECTIVES, SEEDS).between(1, 64)
    assert Settings.of(sizing, least=1, load_seconds=60.0, users=50).queue == 50


def test_gpus_that_are_mostly_idle_have_a_fraction_of_a_job_each() -> None:
    """Half an image a second, one second each, on four GPUs."""
    sizing = Search(GpuQueue(0.5, service=1.0), OBJECTIVES, SEEDS).between(4, 4)
    assert Settings.of(sizing, least=1, load_seconds=60.0).jobs_per_gpu == pytest.approx(0.5 / 4, abs=0.02)


def test_unfinished_jobs_are_those_of_littles_law() -> None:
    (trial,) = Search(GpuQueue(1.0, service=1.0), OBJECTIVES, SEEDS[:1]).between(64, 64).trials
    assert unfinished(trial) == pytest.approx(1.0, rel=0.1)  # no job waits: one second each, once a second
