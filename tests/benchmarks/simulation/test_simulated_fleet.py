"""The simulated fleet: claims, failures and scaling, and what its coarser devices leave out."""

import dataclasses
import random
from collections.abc import Sequence

import pytest
from fakes.service_times import FREE, ONE, TABLE, FakeTimes, scenario
from msgspec.structs import replace

from benchmarks.simulation.fleet.autoscaler import wanted_hosts
from benchmarks.simulation.fleet.queue import FleetJob, FleetQueue
from benchmarks.simulation.requests import prepare
from benchmarks.simulation.scenario import (
    Autoscaler,
    ClosedLoop,
    Costs,
    EmbeddedServer,
    Failure,
    Fleet,
    Granularity,
    OpenLoop,
    SimulationResult,
    SimulationScenario,
)
from benchmarks.simulation.simulate import simulate
from benchmarks.workload.arrivals import burst
from benchmarks.workload.mix import RequestKind
from server.errors import QueueFull
from server.jobs.storage.fleet.claim_order import ClaimShare, charge

Load = OpenLoop | ClosedLoop

IMAGE = 0.4  # seconds of ONE on a device that has nothing else
LARGE = replace(ONE, name="large", width=512, height=512)
GUIDED = replace(ONE, name="guided", guidance_scale=4.0)


def fleet(hosts: int = 10, load: float | Load = 0.5, *kinds: RequestKind, **fields: object) -> SimulationScenario:
    """Return a fleet under a load; a number is the share of what its devices can generate of ONE."""
    own = {key: fields.pop(key) for key in list(fields) if key in Fleet.__dataclass_fields__}
    loaded = OpenLoop(load * hosts / IMAGE) if isinstance(load, float) else load
    given = {"load": loaded, "seconds": 200.0, "warmup": 20.0} | fields
    return scenario(*kinds, server=Fleet(hosts=hosts, claim=0.005, **own), **given)


def coarse(given: SimulationScenario, granularity: Granularity) -> SimulationResult:
    assert isinstance(given.server, Fleet)
    return simulate(dataclasses.replace(given, server=dataclasses.replace(given.server, granularity=granularity)))


def figures(result: SimulationResult) -> tuple[float, float, float, float]:
    latency = result.figures.latency_s
    assert latency.p50 is not None and latency.p95 is not None
    return latency.p50, latency.p95, result.figures.achieved_per_s, result.utilisation


@pytest.mark.parametrize(
    ("granularity", "kinds", "table", "bound"),
    [
        ("run", [ONE], (), 0.02),
        ("run", [ONE, LARGE, GUIDED], TABLE.rows, 0.05),
        ("image", [ONE], TABLE.rows, 0.05),
        ("image", [replace(ONE, edit=True, images=2, steps=8)], TABLE.rows, 0.1),
    ],
)
def test_coarser_devices_have_the_figures_of_single_steps(
    granularity: Granularity, kinds: Sequence[RequestKind], table: tuple[object, ...], bound: float
) -> None:
    rate = 0.7 * 10 / IMAGE / (2.5 if len(kinds) > 1 or kinds[0].images > 1 else 1.0)
    given = fleet(
        10,
        OpenLoop(rate),
        *kinds,
        table=dataclasses.replace(TABLE, rows=table),
        times=FakeTimes(prompt=0.01, decode=0.03, encode_image=0.02),
    )
    for mine, theirs in zip(figures(coarse(given, granularity)), figures(coarse(given, "step")), strict=True):
        assert mine == pytest.approx(theirs, rel=bound)


@pytest.mark.parametrize("granularity", ["step", "run", "image"])
def test_passes_vary_by_their_spread_on_every_device(granularity: Granularity) -> None:
    given = fleet(1, OpenLoop(0.01), seconds=40_000.0, costs=dataclasses.replace(FREE, spread=0.4))
    found = coarse(given, granularity).figures.latency_s
    assert found.mean == pytest.approx(IMAGE, rel=0.1)
    assert found.p95 == pytest.approx(IMAGE * (1 + 1.7 * 0.4 / 2), rel=0.1), "four passes vary half as much as one"


def test_fleet_of_one_host_has_the_figures_of_a_server() -> None:
    load = OpenLoop(0.6 / IMAGE)
    server = simulate(scenario(server=EmbeddedServer(), load=load, seconds=600.0))
    host = coarse(scenario(server=Fleet(hosts=1, claim=0.0), load=load, seconds=600.0), "step")
    for mine, theirs in zip(figures(host), figures(server), strict=True):
        assert mine == pytest.approx(theirs, rel=0.03)


def test_fleet_generates_what_is_offered_and_its_devices_are_as_busy_as_that_takes() -> None:
    found = simulate(fleet(load=0.5))
    assert found.figures.success_percent == 100
    assert found.figures.achieved_per_s == pytest.approx(0.5 * 10 / IMAGE, rel=0.05)
    assert found.utilisation == pytest.approx(0.5, rel=0.05)
    assert found.device_seconds == pytest.approx(10 * 200.0)
    assert found.passes[1] == pytest.approx(4 * found.figures.achieved_per_s * 200, rel=0.05)
    assert sum(moment.ended for moment in found.timeline) == pytest.approx(found.figures.achieved_per_s * 190, rel=0.05)


def test_scenario_of_a_fleet_has_one_outcome() -> None:
    given = fleet(costs=Costs(spread=0.2), failures=(Failure(100.0, 3),))
    assert simulate(given) == simulate(given)


def test_overloaded_fleet_refuses_what_its_queue_does_not_hold() -> None:
    found = simulate(fleet(load=OpenLoop(2 * 10 / IMAGE, patience=20.0), queue=100, seconds=120.0))
    assert found.figures.achieved_per_s == pytest.approx(10 / IMAGE, rel=0.03)
    assert found.figures.throttled.answers > 100 and max(moment.refused for moment in found.timeline) > 10
    assert max(moment.waiting for moment in found.timeline) <= 100
    impatient = simulate(fleet(load=OpenLoop(2 * 10 / IMAGE, patience=2.0), queue=100, seconds=120.0))
    assert impatient.figures.throttled.gave_up > 500 and impatient.figures.success_percent < 70


def test_jobs_of_hosts_that_vanish_are_replayed_once_their_leases_have_ended() -> None:
    calm = simulate(fleet(load=0.6))
    found = simulate(fleet(load=0.6, failures=(Failure(at=102.0, hosts=4, lasts=50.0),)))
    assert found.figures.success_percent == 100 and found.figures.requests == calm.figures.requests
    assert found.replays > 0 and calm.replays == 0
    ready = {moment.at_s: moment.ready for moment in found.timeline}
    assert (ready[90.0], ready[120.0], ready[160.0]) == (10, 6, 10)
    assert calm.figures.latency_s.max < 6.0 < 8.0 < found.figures.latency_s.max < 12.0
    assert found.device_seconds == pytest.approx(10 * 200.0 - 4 * 50.0)


def test_rack_that_is_lost_under_high_load_makes_a_queue_that_drains_again() -> None:
    found = simulate(fleet(load=0.7, failures=(Failure(at=60.0, hosts=5, lasts=60.0),)))
    waiting = {moment.at_s: moment.waiting for moment in found.timeline}
    assert waiting[120.0] > 100 and waiting[190.0] < 20


POLICY = Autoscaler(min_hosts=4, max_hosts=30, target=5.0, every=10.0, load=60.0, cool_down=120.0)


@pytest.mark.parametrize(
    ("busy", "waiting", "hosts"),
    [(0.0, 0.0, 4), (8.0, 0.0, 10), (8.0, 20.0, 12), (8.0, 1000.0, 30), (3.0, 0.0, 4)],
)
def test_autoscaler_wants_hosts_for_the_load_and_for_the_queue(busy: float, waiting: float, hosts: int) -> None:
    assert wanted_hosts(POLICY, 1, busy, waiting) == hosts


def test_hosts_with_several_devices_are_wanted_as_a_whole() -> None:
    assert wanted_hosts(POLICY, 4, 20.0, 0.0) == 7


def test_burst_adds_hosts_after_their_load_time_and_removes_them_after_the_cool_down() -> None:
    load = OpenLoop(burst(4 * 0.6 / IMAGE, 5.0, 100.0, 200.0))
    common = {"seconds": 900.0, "warmup": 0.0, "granularity": "image"}
    found = simulate(fleet(4, load, autoscaler=POLICY, **common))
    ready = {moment.at_s: moment.ready for moment in found.timeline}
    starting = {moment.at_s: moment.starting for moment in found.timeline}
    assert ready[100.0] <= 5 and starting[130.0] > 3 and ready[150.0] <= 5, "new hosts load for a minute"
    assert ready[200.0] > 12 and max(ready.values()) <= 30
    assert ready[890.0] <= 5, "they are removed again"
    assert found.figures.success_percent == 100
    added = [event.at_s for event in found.scalings if event.after > event.before]
    removed = [event.at_s for event in found.scalings if event.after < event.before]
    assert min(removed) - max(each for each in added if each < min(removed)) >= POLICY.cool_down
    assert found.device_seconds < 900.0 * 30 and found.scalings[0].after > found.scalings[0].before
    fixed = simulate(fleet(4, load, **common))
    assert fixed.figures.latency_s.p95 > 2 * found.figures.latency_s.p95


def test_users_who_think_load_a_fleet_as_little_as_a_server() -> None:
    found = simulate(fleet(4, ClosedLoop(8, think=2.0), seconds=600.0))
    assert found.figures.latency_s.mean is not None
    assert found.figures.achieved_per_s * (found.figures.latency_s.mean + 2.0) == pytest.approx(8, rel=0.05)


def test_deadline_fails_jobs_that_come_too_late() -> None:
    found = simulate(fleet(10, OpenLoop(1.5 * 10 / IMAGE, patience=1.0), replace(ONE, deadline=5.0), queue=100_000))
    assert found.figures.errors.keys() <= {"failed", "throttled"} and found.figures.throttled.answers > 100
    assert found.figures.first_byte_s.max <= 6.0
    lost = simulate(fleet(10, 0.6, replace(ONE, deadline=5.0), failures=(Failure(102.0, 4),)))
    assert lost.figures.errors["failed"] > 0 and lost.replays == 0, "nobody wants them once the leases have ended"


@pytest.mark.parametrize("granularity", ["step", "run", "image"])
def test_kinds_of_all_sorts_end_on_every_device(granularity: Granularity) -> None:
    kinds = [
        replace(GUIDED, lora="ink", weight=3.0),
        replace(LARGE, priority="batch", images=2),
        replace(ONE, edit=True, steps=7),
    ]
    given = fleet(6, OpenLoop(2.0), *kinds, devices_per_host=2, table=TABLE, seconds=400.0)
    found = coarse(given, granularity)
    assert found.figures.success_percent == 100 and found.figures.cut_off < 20
    assert found.figures.images > 600


def test_jobs_do_not_share_a_device_while_others_are_idle() -> None:
    found = simulate(fleet(200, 0.5, seconds=30.0, warmup=5.0, granularity="image"))
    assert found.figures.latency_s.p95 < 1.1 * IMAGE


# the queue alone


def queued(queue: FleetQueue, client: str, kind: RequestKind = ONE, created: float = 0.0) -> FleetJob:
    prepared = prepare([kind], scenario().manifest, 32)[kind.name]
    job = FleetJob(prepared, client, created, created, 0, kind.images, lambda *_: None)
    queue.add(job)
    return job


def test_clients_are_claimed_in_the_order_of_the_database() -> None:
    """The heap gives the order that `ClaimShare.order` has at the virtual time of each claim."""
    rng, queue, now = random.Random(5), FleetQueue(10_000), 0.0
    waiting: dict[str, list[FleetJob]] = {}
    spent: dict[str, float] = {}
    for _ in range(2000):
        if rng.random() < 0.5:
            client = f"client {min(int(rng.expovariate(0.4)), 9)}"
            waiting.setdefault(client, []).append(queued(queue, client, rng.choice([ONE, LARGE])))
        elif (job := queue.claim(tuple)) is not None:
            shares = [ClaimShare(name, jobs[0].number, spent.get(name, 0.0)) for name, jobs in waiting.items() if jobs]
            first = min(shares, key=lambda share: share.order(now))
            assert job is waiting[first.client].pop(0)
            now = first.charge(charge(job.prepared.cost, 1.0, 1, 1), now)
            spent[first.client] = first.spent
    assert queue.waiting == sum(map(len, waiting.values())) and queue.waiting_cost > 0


def test_client_with_many_jobs_does_not_hold_up_another() -> None:
    queue = FleetQueue(100)
    for _ in range(10):
        queued(queue, "busy")
    late = queued(queue, "late")
    assert queue.claim(tuple) is not late and queue.claim(tuple) is late
    fifo = FleetQueue(100, ["fifo"])
    jobs = [queued(fifo, client) for client in ("busy", "busy", "busy", "late")]
    assert [fifo.claim(tuple) for _ in range(5)] == [*jobs, None]


def test_job_that_batches_comes_before_an_elder_one_of_its_client() -> None:
    queue = FleetQueue(100)
    first, second = queued(queue, "a"), queued(queue, "a", LARGE)
    assert queue.claim(lambda: {(None, LARGE.size)}) is second and queue.claim(tuple) is first
    elder, much_younger = queued(queue, "a"), queued(queue, "a", LARGE, created=11.0)
    assert queue.claim(lambda: {(None, LARGE.size)}) is elder and queue.claim(tuple) is much_younger


def test_job_that_is_put_back_comes_at_its_old_place_and_is_not_charged_twice() -> None:
    queue = FleetQueue(100)
    for _ in range(3):
        queued(queue, "a")
    first = queue.claim(tuple)
    assert first is not None
    second = queue.claim(tuple)
    other = queued(queue, "b")
    queue.put_back(first)
    assert queue.claim(tuple) in (first, other) and queue.claim(tuple) in (first, other) and second is not first


def test_queue_leaves_places_for_other_clients() -> None:
    queue = FleetQueue(8)
    for _ in range(6):
        queue.admit("busy", lambda: 7.0)
        queued(queue, "busy")
    with pytest.raises(QueueFull) as refusal:
        queue.admit("busy", lambda: 7.0)
    assert refusal.value.retry_after == 7.0
    queue.admit("other", lambda: 7.0)
