"""The simulated server: what the real policies make of given times, and what becomes of the records."""

import dataclasses
from collections import Counter

import pytest
from fakes.service_times import FREE, ONE, TABLE, FakeTimes, scenario
from msgspec.structs import replace

from benchmarks.simulation.scenario import Change, ClosedLoop, Costs, EmbeddedServer, OpenLoop, WorkerDeath
from benchmarks.simulation.simulate import simulate
from engine.errors import InvalidRequest
from server.jobs.admission.admission import Limits
from server.jobs.admission.rate import Rate

BATCHING = EmbeddedServer(table=TABLE)
LARGE = replace(ONE, name="large", width=512, height=512)


def test_request_takes_the_sum_of_its_stages() -> None:
    times = FakeTimes(prompt=0.5, decode=0.2)
    costs = Costs(request=0.01, response=0.02, file=1.0, step=0.001)
    first, second = simulate(scenario(times=times, costs=costs)).records[:2]
    expected = 0.01 + 4 * (0.1 + 0.001) + 0.2 + 256 * 256 / 1e6 + 0.02
    assert first.latency == pytest.approx(expected + 0.5)
    assert second.latency == pytest.approx(expected), "its prompt is known"
    assert (first.outcome, first.images) == ("ok", 1)
    assert first.queue == pytest.approx(0.0) and first.drawing == pytest.approx(expected + 0.5 - 0.03)


def test_different_prompts_are_encoded_for_every_image() -> None:
    found = simulate(scenario(times=FakeTimes(prompt=0.5), different_prompts=True)).records
    assert [record.latency for record in found[:3]] == pytest.approx([0.9] * 3)


def test_scenario_has_one_outcome_and_another_seed_has_another() -> None:
    given = {"load": ClosedLoop(5), "costs": Costs(spread=0.1)}
    assert simulate(scenario(**given)) == simulate(scenario(**given)) != simulate(scenario(**given, seed=2))


def test_saturated_server_generates_at_the_rate_of_its_largest_batch() -> None:
    for server, passes in ((EmbeddedServer(), 0.1), (BATCHING, 0.13 / 4)):
        found = simulate(scenario(server=server, load=ClosedLoop(30))).figures
        assert found.success_percent == 100
        assert found.achieved_per_s == pytest.approx(1 / (4 * passes), rel=0.03)


def test_users_are_those_who_wait_and_those_who_think() -> None:
    """Little's law: the users are the rate times latency and pause."""
    for users in (10, 40):
        found = simulate(scenario(server=BATCHING, load=ClosedLoop(users, think=2.0), seconds=120.0)).figures
        assert found.latency_s.mean is not None
        assert found.achieved_per_s * (found.latency_s.mean + 2.0) == pytest.approx(users, rel=0.05)


def test_images_join_and_leave_a_batch_at_every_step() -> None:
    found = simulate(scenario(server=BATCHING, load=ClosedLoop(3, think=0.3)))
    assert set(found.passes) == {1, 2, 3} and min(found.passes.values()) > 10


def test_two_devices_generate_twice_as_many_images() -> None:
    one, two = (simulate(scenario(server=EmbeddedServer(devices=n), load=ClosedLoop(20))) for n in (1, 2))
    assert two.figures.achieved_per_s == pytest.approx(2 * one.figures.achieved_per_s, rel=0.03)
    assert one.utilisation > 0.99 and two.utilisation > 0.99
    assert (one.device_seconds, two.device_seconds) == (60.0, 120.0)


def test_full_queue_asks_users_to_come_back_and_patient_ones_get_their_images() -> None:
    server = EmbeddedServer(limits=Limits(queue=5))
    found = simulate(scenario(server=server, load=ClosedLoop(12), seconds=120.0)).figures
    assert found.success_percent == 100 and found.throttled.answers > 20
    assert found.throttled.answers == found.throttled.honoured and found.throttled.gave_up == 0
    impatient = simulate(scenario(server=server, load=ClosedLoop(12, patience=1.5), seconds=120.0))
    assert impatient.figures.throttled.gave_up > 5 and impatient.figures.success_percent < 90
    assert {record.outcome for record in impatient.records} == {"ok", "throttled"}


def test_client_that_alone_fills_the_queue_leaves_places_for_others() -> None:
    server = EmbeddedServer(limits=Limits(queue=8))
    alone = simulate(scenario(server=server, load=ClosedLoop(8, think=0.0, clients=1), warmup=0.0))
    assert alone.figures.throttled.answers > 0
    others = simulate(scenario(server=server, load=ClosedLoop(8, think=0.0), warmup=0.0))
    assert others.figures.throttled.answers == 0


def test_deadline_that_cannot_be_met_is_refused_and_one_that_passes_fails_the_job() -> None:
    urgent = replace(ONE, deadline=1.0)
    found = simulate(scenario(urgent, load=ClosedLoop(4, patience=0.5)))
    outcomes = Counter(record.outcome for record in found.records)
    assert outcomes["throttled"] > 10 and outcomes["ok"] > 50
    assert all(record.latency <= 1.0 for record in found.records if record.outcome == "ok")
    first = simulate(scenario(replace(ONE, deadline=0.35), seconds=5.0, warmup=0.0)).records[0]
    assert first.outcome == "failed" and "deadline" in first.error and first.latency == pytest.approx(0.35)


def test_rate_limit_holds_for_each_client() -> None:
    server = EmbeddedServer(rate=Rate(30, 60))
    found = simulate(scenario(server=server, load=ClosedLoop(2, think=0.0), seconds=300.0, warmup=100.0)).figures
    assert found.throttled.answers > 0 and found.success_percent == 100
    assert found.achieved_per_s == pytest.approx(2 * 30 / 60, rel=0.1)


def test_open_loop_counts_from_the_arrival_and_goes_on_while_the_server_is_overloaded() -> None:
    calm = simulate(scenario(load=OpenLoop(1.0), seconds=300.0)).figures
    assert calm.offered_per_s == pytest.approx(1.0, rel=0.1) and calm.latency_s.p50 < 1.0
    flooded = simulate(scenario(load=OpenLoop(5.0, clients=5), seconds=120.0))
    assert flooded.figures.offered_per_s == pytest.approx(5.0, rel=0.1)
    assert flooded.figures.achieved_per_s == pytest.approx(2.5, rel=0.1)
    assert flooded.figures.cut_off == 0 and flooded.figures.latency_s.p95 > 50, "their ends are waited for"


def test_jobs_of_a_worker_that_dies_are_replayed_one_at_a_time() -> None:
    server = EmbeddedServer(devices=2, table=TABLE, deaths=(WorkerDeath(20.0, device=1, restart=10.0),))
    found = simulate(scenario(server=server, load=ClosedLoop(12, think=0.1), seconds=60.0, warmup=0.0))
    assert found.figures.success_percent == 100
    late = [record for record in found.records if record.due < 20.0 < record.ended]
    calm = [record.latency for record in found.records if record.ended < 20.0]
    assert sorted(record.latency for record in late)[-1] > max(calm) + 0.3
    alive = [sum(start <= record.ended < start + 8.0 for record in found.records) for start in (10.0, 21.0, 40.0)]
    assert alive[1] < 0.75 * alive[0] and alive[2] > 0.9 * alive[0]


def test_job_whose_worker_dies_twice_fails() -> None:
    deaths = WorkerDeath(1.05, restart=0.1), WorkerDeath(1.35, restart=0.1)
    found = simulate(scenario(server=EmbeddedServer(deaths=deaths), seconds=5.0, warmup=0.0)).records
    outcomes = [record.outcome for record in found]
    assert outcomes[:5] == ["ok", "ok", "failed", "ok", "ok"] and "died twice" in found[2].error


def test_user_who_gives_up_frees_the_device() -> None:
    found = simulate(scenario(load=ClosedLoop(4, think=0.0, timeout=1.0), seconds=30.0))
    outcomes = Counter(record.outcome for record in found.records)
    assert outcomes["timeout"] > 10
    assert all(record.latency == pytest.approx(1.0) for record in found.records if record.outcome == "timeout")
    assert found.passes[1] <= 30.0 / 0.1, "images of users who are gone take no passes"


def test_guided_images_edits_and_images_of_one_job_take_their_passes() -> None:
    guided = replace(ONE, name="guided", guidance_scale=4.0, steps=6)
    assert simulate(scenario(guided)).records[0].latency == pytest.approx(6 * 0.11), "both prompts share a pass"
    edit = replace(ONE, name="edit", edit=True, steps=5)
    first = simulate(scenario(edit, times=FakeTimes(encode_image=0.7))).records[0]
    assert first.latency == pytest.approx(0.7 + 3 * 0.1), "0.6 of the steps"
    both = replace(ONE, images=2)
    assert simulate(scenario(both)).records[0].latency == pytest.approx(2 * 4 * 0.1)
    assert simulate(scenario(both, server=BATCHING)).records[0].latency == pytest.approx(4 * 0.11)


def test_loras_take_time_slices_with_a_pause_between_them() -> None:
    kinds = [replace(ONE, name=name, lora=name) for name in ("ink", "oil")]
    found = simulate(scenario(*kinds, load=ClosedLoop(8, think=0.0), costs=Costs(0, 0, 0, lora_change=1.0)))
    assert found.figures.success_percent == 100 and set(found.figures.by_kind) == {"ink", "oil"}
    one = simulate(scenario(kinds[0], load=ClosedLoop(8, think=0.0), costs=Costs(0, 0, 0, lora_change=1.0)))
    assert 0.6 < found.figures.achieved_per_s / one.figures.achieved_per_s < 0.95


def test_pass_that_runs_ahead_hides_the_host_and_ends_no_image_sooner() -> None:
    for ahead in (0, 1):
        found = simulate(scenario(server=EmbeddedServer(max_ahead=ahead), load=ClosedLoop(4, think=0.0))).figures
        assert found.achieved_per_s == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("change", ["no-batch", "fifo"])
def test_changed_policy_has_another_outcome(change: Change) -> None:
    """Each change misses where its policy matters, so that a validation can fail."""
    loads = {
        "no-batch": scenario(server=BATCHING, load=ClosedLoop(20)),
        "fifo": scenario(ONE, LARGE, load=ClosedLoop(20, think=0.5), seconds=300.0),
    }
    given = loads[change]
    real = simulate(given).figures
    changed = simulate(dataclasses.replace(given, changes=frozenset({change}))).figures
    differences = [abs(changed.achieved_per_s / real.achieved_per_s - 1)]
    differences += [
        abs(mine / theirs - 1)
        for mine, theirs in zip(
            (changed.latency_s.p50, changed.latency_s.p95), (real.latency_s.p50, real.latency_s.p95), strict=True
        )
    ]
    assert max(differences) > 0.1, differences


def test_kind_that_the_plans_cannot_generate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="height must be between"):
        simulate(scenario(replace(ONE, width=1024, height=1024)))


def test_costs_of_the_event_loop_bound_the_rate_of_requests() -> None:
    busy = Costs(request=0.5, response=0.5, file=0.0)
    server = EmbeddedServer(devices=4)
    found = simulate(scenario(costs=busy, server=server, load=ClosedLoop(20, think=0.0), seconds=300.0)).figures
    assert found.achieved_per_s == pytest.approx(1.0, rel=0.05)
    assert simulate(scenario(costs=FREE, load=ClosedLoop(20, think=0.0))).figures.achieved_per_s > 2.3
