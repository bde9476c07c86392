"""LoRAs alternate in time slices, and none starves."""

import pytest
from fakes.loop_builder import SLOTS, LoopBuilder, finish_order, sample, submit

from engine.request import LoraChoice
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised
from engine.scheduler.lora_schedule import MIN_SLICE, SLICE_PER_CHANGE, LoraScheduler


def test_slice_ends_after_its_length_since_first_batch_and_submission() -> None:
    loras = LoraScheduler()
    loras.add(sample("1", 64, submitted_at=0.0))
    loras.start_slice(0.5)
    assert loras.longest_waiting() is None and not loras.is_slice_over(1e9)
    loras.add(sample("2", 64, lora="a", submitted_at=10.0))
    loras.add(sample("3", 64, lora="b", submitted_at=11.0))
    loras.add(sample("4", 64, submitted_at=12.0))
    assert loras.longest_waiting().request.lora == "a"
    assert not loras.is_slice_over(10.0 + MIN_SLICE) and loras.is_slice_over(10.1 + MIN_SLICE)
    loras.activate(LoraChoice("a", 1.0), change_seconds=MIN_SLICE)
    assert loras.longest_waiting().submitted_at == 0.0
    assert not loras.is_slice_over(1e9), "not before its first batch"
    loras.start_slice(20.0)
    loras.start_slice(30.0)
    assert not loras.is_slice_over(20.0 + SLICE_PER_CHANGE * MIN_SLICE)
    assert loras.is_slice_over(20.1 + SLICE_PER_CHANGE * MIN_SLICE)


def test_slice_ends_when_active_lora_has_no_samples() -> None:
    loras = LoraScheduler()
    only = sample("1", 64)
    loras.add(only)
    loras.add(sample("2", 64, lora="a"))
    assert not loras.is_slice_over(1.0)
    loras.remove(only)
    assert loras.is_slice_over(1.0)


def test_images_of_one_lora_are_generated_together(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    submit(loop, "a1", "-1", "b1", "a2", "-2", "b2")
    assert finish_order(loop) == ["-1", "-2", "a1", "a2", "b1", "b2"]
    assert (fakes.loras.applied, fakes.graphs.batches) == (["a", "b"], [2] * 12)


def test_strengths_of_one_lora_alternate_like_loras_and_zero_is_no_lora(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    submit(loop, "a1", "a2", num_inference_steps=1)
    submit(loop, "a3", num_inference_steps=1, lora_strength=0.5)
    submit(loop, "a4", "-5", num_inference_steps=1, lora_strength=0.0)
    submit(loop, "a6", num_inference_steps=1, lora_strength=0.5)
    assert finish_order(loop) == ["a4", "-5", "a1", "a2", "a3", "a6"]
    assert (fakes.loras.applied, fakes.graphs.batches) == (["a", "a"], [2, 2, 2])


def test_images_of_one_lora_finish_in_order_of_submission(fakes: LoopBuilder) -> None:
    loop = fakes.loop(BatchTable(), min_slice=0.0)
    submit(loop, "a1", "a2", "b1", "a3", "b2", num_inference_steps=1)
    order = finish_order(loop)
    assert [name for name in order if name[0] == "a"] == ["a1", "a2", "a3"]
    assert [name for name in order if name[0] == "b"] == ["b1", "b2"]


@pytest.mark.parametrize(("min_slice", "places"), [(0.0, [1, 2, 3]), (3600.0, [30])])
def test_steady_stream_delays_another_lora_by_one_slice(
    fakes: LoopBuilder, min_slice: float, places: list[int]
) -> None:
    """After the slice, images that have a slot are finished, then the waiting LoRA's, then the stream goes on."""
    loop, order = fakes.loop(BatchTable(), min_slice), []
    for number in range(30):
        submit(loop, f"-{number}", *(["a1"] if number == 1 else []))
        order += [event.key for _ in range(2) for event in loop.step() if isinstance(event, Denoised)]
    order += finish_order(loop)
    assert len(order) == 31
    assert order.index("a1") in places


def test_each_slice_fills_the_slots_when_all_loras_are_overdue(fakes: LoopBuilder) -> None:
    loop = fakes.loop(BatchTable(), min_slice=0.0)
    for number in range(SLOTS + 1):
        submit(loop, f"-{number}", f"a{number}", f"b{number}", num_inference_steps=2)
    assert len(finish_order(loop)) == 3 * (SLOTS + 1)
    assert len(fakes.loras.applied) < 3 * (SLOTS + 1)


def test_client_with_many_loras_does_not_delay_another_client_by_more_than_its_slice() -> None:
    loras = LoraScheduler(min_slice=0.0)
    for number in range(20):
        loras.add(sample(f"flood {number}", 64, lora=f"lora {number % 4}", client="flood", submitted_at=number))
    loras.activate(LoraChoice("lora 0", 1.0), 0.0)
    loras.charge(loras.queue.first, 1.0)
    loras.add(sample("single", 64, client="single", submitted_at=100.0))
    loras.charge(loras.queue.first, 1.0)
    assert loras.next_waiting().key == "single"
    assert loras.longest_waiting().key == "flood 1"


def test_loras_of_one_client_are_activated_by_their_oldest_samples() -> None:
    loras = LoraScheduler()
    for at, lora in enumerate("bca"):
        loras.add(sample(lora, 64, steps=3 - at, lora=lora, submitted_at=at))
    assert loras.next_waiting().key == "b"


def test_log_names_the_lora_that_was_applied_and_says_that_it_was_removed(
    fakes: LoopBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    loop = fakes.loop()
    with caplog.at_level("INFO", "engine.scheduler.step_loop"):
        for name in ("a1", "-1"):
            submit(loop, name)
            finish_order(loop)
    assert [message.split(" in ")[0] for message in caplog.messages] == [
        "applied LoRA a",
        "removed the LoRA",
    ]
