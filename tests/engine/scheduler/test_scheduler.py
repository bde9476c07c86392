"""Decisions about the next batch: by the scheduler alone, and as a loop carries them out."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.loop_builder import (
    BATCHING,
    RED,
    Arrival,
    LoopBuilder,
    loop_builder,
    remaining_events,
    run_workload,
    sample,
)
from fakes.manifest import MANIFEST
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduler.batch_table import BatchTable, PassTimes
from engine.scheduler.events import Denoised, Stepped
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch, LoraChange, Scheduler

# the scheduler alone


def run(scheduler: Scheduler, seconds: dict[int, float]) -> list[tuple[float, Batch | LoraChange]]:
    """Run a scheduler to its end by given seconds of a pass, by width; return what it decided, and when."""
    now, decisions = 0.0, []
    while (work := scheduler.next(now)) is not None:
        decisions.append((now, work))
        if isinstance(work, LoraChange):
            now += 0.5
            scheduler.complete_change(work, 0.5)
            continue
        scheduler.start(work, now)
        now += seconds[work.size.width]
        share = seconds[work.size.width] / len(work)
        scheduler.complete(work, [(forward.sample, share) for forward in work.passes])
        for member in work.samples:
            if member.done == member.steps:
                scheduler.remove(member)
    assert scheduler.is_empty and scheduler.slots_taken == 0
    return decisions


def test_scheduler_runs_on_given_pass_times_without_an_engine() -> None:
    scheduler = Scheduler(MANIFEST, slots=4, table=BATCHING)
    for number in range(3):
        scheduler.add(sample(f"small {number}", 64, steps=2))
    scheduler.add(sample("large", 512, steps=2))
    decisions = run(scheduler, {64: 1.0, 512: 10.0})
    assert [(now, work.size.width, len(work)) for now, work in decisions] == [
        (0.0, 64, 3),
        (1.0, 512, 1),
        (11.0, 64, 3),
        (12.0, 512, 1),
    ]


def test_table_that_comes_later_counts_from_the_next_batch_on_also_for_sizes_seen_before() -> None:
    scheduler = Scheduler(MANIFEST, slots=4)
    for number in range(3):
        scheduler.add(sample(f"small {number}", 64))
    before = scheduler.next(0.0)
    scheduler.use_table(BATCHING)
    assert [len(before), len(scheduler.next(0.0))] == [1, 3]


def test_scheduler_shares_time_between_sizes() -> None:
    scheduler = Scheduler(MANIFEST, slots=8)
    for number in range(20):
        scheduler.add(sample(f"small {number}", 64, steps=10))
        scheduler.add(sample(f"large {number}", 512, steps=10))
    spent = Counter[int]()
    for now, work in run(scheduler, {64: 1.0, 512: 4.0}):
        if now < 400:
            spent[work.size.width] += {64: 1, 512: 4}[work.size.width]
    assert abs(spent[64] - spent[512]) <= 4


def test_change_of_loras_waits_for_admitted_samples_and_admits_no_more() -> None:
    scheduler = Scheduler(MANIFEST, slots=2, lora_scheduler=LoraScheduler(min_slice=3.0))
    for number in range(5):
        scheduler.add(sample(f"-{number}", 64, steps=4, submitted_at=0.1 * number))
    scheduler.add(sample("a", 64, steps=1, lora="a", submitted_at=1.0))
    decisions = [(now, work.samples[0].key, type(work)) for now, work in run(scheduler, {64: 1.0})]
    changes = [(now, key) for now, key, kind in decisions if kind is LoraChange]
    assert changes == [(8.0, "a"), (9.5, "-2")]
    assert [key for now, key, _ in decisions if now < 8.0] == ["-0"] * 4 + ["-1"] * 4
    assert [key for now, key, _ in decisions if now >= 10.0] == ["-2"] * 4 + ["-3"] * 4 + ["-4"] * 4


def test_removed_sample_frees_its_slots_and_its_running_pass_delays_a_change() -> None:
    scheduler = Scheduler(MANIFEST, slots=2)
    guided = sample("guided", 64, branches=2)
    scheduler.add(guided)
    batch = scheduler.next(0.0)
    scheduler.start(batch, 0.0)
    scheduler.add(sample("a", 64, lora="a"))
    scheduler.remove(guided)
    assert scheduler.slots_taken == 0
    assert scheduler.next(0.0, is_running=True) is None
    scheduler.complete(batch, [(batch.samples[0], 1.0)])
    assert isinstance(scheduler.next(1.0), LoraChange)


def guided_passes(guided: Sample) -> list[list[tuple[int, int]]]:
    """Return (branch, step) of each pass of each batch, for a scheduler without a table."""
    scheduler = Scheduler(MANIFEST, slots=2)
    scheduler.add(guided)
    batches = [work.passes for _, work in run(scheduler, {64: 1.0, 512: 1.0})]
    return [[(guided.branches.index(forward.branch), forward.step) for forward in passes] for passes in batches]


def test_guided_branches_wait_for_each_other() -> None:
    guided = sample("guided", 64, steps=2, branches=2, tokens=(1, 40))
    assert guided_passes(guided) == [[(0, 0)], [(1, 0)], [(0, 1)], [(1, 1)]]


def test_guided_branches_of_one_length_share_each_pass_without_gain() -> None:
    guided = sample("guided", 64, steps=2, branches=2, tokens=(1, 32))
    assert guided_passes(guided) == [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]


def test_guided_branches_run_one_after_the_other_where_no_profile_covers_two() -> None:
    guided = sample("guided", 512, steps=2, branches=2)
    assert guided_passes(guided) == [[(0, 0)], [(1, 0)], [(0, 1)], [(1, 1)]]


@pytest.mark.parametrize("tokens", [(1, 1), (1, 40), (40, 1)])
def test_negative_branch_ends_with_the_guided_steps(tokens: tuple[int, int]) -> None:
    guided = sample("guided", 64, steps=4, branches=2, tokens=tokens, guided_steps=1)
    assert guided.tokens_left == 4 * (16 + guided.branches[0].length) + 16 + guided.branches[1].length
    passes = [each for batch in guided_passes(guided) for each in batch]
    assert sorted(passes) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert passes.index((1, 0)) < passes.index((0, 1))
    assert (guided.done, guided.enqueued, guided.tokens_left) == (4, 4, 0)


def test_step_is_complete_once_every_branch_that_takes_part_is_enqueued() -> None:
    """Also while the negative prompt, whose last step this is, runs ahead of the prompt."""
    guided = sample("guided", 64, steps=3, branches=2, guided_steps=1)
    positive, negative = guided.branches
    states = []
    for branch in (negative, positive, positive):
        branch.enqueued += 1
        states.append((guided.enqueued, guided.is_step_complete))
    assert states == [(0, False), (1, True), (2, True)]
    assert [guided.is_guided(step) for step in range(3)] == [True, False, False]


@settings(deadline=None)
@given(
    gains=st.integers(1, 4),
    images=st.lists(st.tuples(st.sampled_from([64, 96]), st.sampled_from(["", "equal", "longer"]), st.integers(1, 4))),
)
def test_guided_branches_of_one_length_are_never_separated(gains: int, images: list[tuple[int, str, int]]) -> None:
    table = BatchTable("", (PassTimes(512, 512, tuple(1 + i / 10 for i in range(gains))),))
    scheduler = Scheduler(MANIFEST, slots=5, table=table)
    for number, (side, negative, guided_steps) in enumerate(images):
        tokens = (1, 40 if negative == "longer" else 1)
        branches = 2 if negative else 1
        added = sample(
            f"{number}", side, 4, client=side * "a", branches=branches, tokens=tokens, guided_steps=guided_steps
        )
        scheduler.add(added)
    for _, work in run(scheduler, {64: 1.0, 96: 2.0}):
        assert len(work) <= max(gains, 2)
        for forward in work.passes:
            guided = forward.sample
            if guided.is_guided(forward.step) and guided.branches[0].length == guided.branches[1].length:
                assert {other.branch for other in work.passes if other.sample is guided} == set(guided.branches)


def test_younger_samples_do_not_overtake_a_sample_that_waits_for_two_slots() -> None:
    scheduler = Scheduler(MANIFEST, slots=2, table=BATCHING)
    scheduler.add(sample("first", 64, steps=4))
    batch = scheduler.next(0.0)
    scheduler.start(batch, 0.0)
    scheduler.complete(batch, [(batch.samples[0], 1.0)])
    scheduler.add(sample("guided", 64, steps=2, branches=2))
    scheduler.add(sample("younger", 64, steps=2))
    batches = [[member.key for member in work.samples] for _, work in run(scheduler, {64: 1.0})]
    assert batches == [["first"]] * 3 + [["guided"]] * 2 + [["younger"]] * 2


# a loop over fakes


def test_images_that_gain_share_passes_and_others_do_not(fakes: LoopBuilder) -> None:
    arrivals = [Arrival(replace(RED, seed=seed)) for seed in range(4)]
    run_workload(fakes.loop(), arrivals)
    assert fakes.graphs.batches == [4] * 4
    fakes.graphs.batches.clear()
    run_workload(fakes.loop(BatchTable()), arrivals)
    assert fakes.graphs.batches == [1] * 16


def test_batches_stay_within_the_profile(fakes: LoopBuilder) -> None:
    """The plans take a batch of four up to 256 x 256, and of one at 512 x 256."""
    table = BatchTable("", (PassTimes(512, 512, tuple(1 + i / 10 for i in range(9))),))
    run_workload(fakes.loop(table), [Arrival(replace(RED, height=height)) for height in (64, 512) for _ in range(5)])
    assert set(fakes.graphs.batches) == {4, 1}


def test_late_image_joins_at_the_next_step(fakes: LoopBuilder) -> None:
    run_workload(fakes.loop(), [Arrival(RED, 0), Arrival(RED, 2), Arrival(RED, 4)])  # each is announced first
    assert fakes.graphs.batches == [1, 2, 3, 3, 2, 1]


def test_images_without_gain_finish_one_after_the_other(fakes: LoopBuilder) -> None:
    loop = fakes.loop(BatchTable())
    for seed in range(3):
        loop.submit(str(seed), replace(RED, seed=seed))
    events = remaining_events(loop)
    assert [event.key for event in events if isinstance(event, Denoised)] == ["0", "1", "2"]
    assert [event.key for event in events if isinstance(event, Stepped)] == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


@pytest.mark.parametrize("slots", [2, 5, 12])
def test_sample_waiting_for_slots_does_not_block_samples_that_have_them(fake_plans: Path, slots: int) -> None:
    """The oldest sample waits for two slots, and the samples that have them are of another prompt length."""
    builder = loop_builder(fake_plans, "host", slots)
    long = replace(RED, prompt="a blue star " * 12, negative_prompt="a blue star " * 12)
    arrivals = [Arrival(replace(RED, num_inference_steps=1))]
    arrivals += [Arrival(replace(long, guidance_scale=2.0, num_inference_steps=3)) for _ in range(slots // 2)]
    arrivals += [Arrival(replace(RED, num_inference_steps=5, seed=seed)) for seed in range(slots)]
    arrivals += [Arrival(replace(RED, guidance_scale=2.0, negative_prompt=long.prompt), 1) for _ in range(3)]
    assert len(run_workload(builder.loop(), arrivals)) == len(arrivals)


def test_more_guided_images_than_slots_all_finish(fakes: LoopBuilder) -> None:
    arrivals = [Arrival(replace(RED, height=64 + 16 * (i % 3), guidance_scale=1.5)) for i in range(9)]
    assert len(run_workload(fakes.loop(), arrivals)) == 9
