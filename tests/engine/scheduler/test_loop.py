"""Submission, events, cancellation and failures of an engine loop."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from fakes.loop_builder import RED, Arrival, LoopBuilder, finish_order, remaining_events, run_workload, submit

from engine.array import Array
from engine.errors import DeviceError, InvalidRequest, NonFiniteOutput, PlanCorrupt
from engine.scheduler.events import Denoised, Failed, Passed, Started, Stepped, Switched
from engine.scheduler.loop import EngineLoop


def test_events_of_one_image(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    loop.submit("a", RED)
    events = [event for event in remaining_events(loop) if not isinstance(event, Passed)]
    assert [type(event) for event in events] == [Started, *[Stepped] * 4, Denoised]
    steps = [(event.done, event.steps) for event in events if isinstance(event, Stepped)]
    assert steps == [(i, 4) for i in range(1, 5)]
    assert {event.key for event in events} == {"a"}
    image = events[-1].pending.finish()
    assert {stage for stage, seconds in asdict(image.seconds).items() if not seconds} == {"vae_encoder", "encode"}
    assert image.prompt.text == "a red circle"


def test_image_is_announced_before_its_first_pass(fakes: LoopBuilder) -> None:
    """The pass may end the process."""
    loop = fakes.loop()
    loop.submit("a", RED)
    assert loop.step() == [Started("a")]
    assert fakes.graphs.batches == []


def test_image_is_announced_before_its_lora_is_applied(fakes: LoopBuilder) -> None:
    """If the change ends the process, the image counts as tried."""
    loop = fakes.loop()
    submit(loop, "a1", "a2")
    assert loop.step() == [Started("a1")] and fakes.loras.applied == []
    assert [loop.step() for _ in range(fakes.loras.portions)] == [[], []] and fakes.loras.applied == []
    [switched] = loop.step()
    assert isinstance(switched, Switched) and switched.seconds > 0 and fakes.loras.applied == ["a"]
    assert [event for event in remaining_events(loop) if isinstance(event, Started)] == [Started("a2")]


def test_change_of_loras_is_completed_though_its_images_are_cancelled(fakes: LoopBuilder) -> None:
    """Half a LoRA must not stay in the plans while the loop seems idle."""
    loop = fakes.loop()
    submit(loop, "a1")
    loop.step(), loop.step()
    assert loop.cancel("a1") and not loop.is_idle
    submit(loop, "-2")
    events = remaining_events(loop)
    assert fakes.loras.applied == ["a", None]
    assert [event.key for event in events if isinstance(event, Denoised)] == ["-2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PlanCorrupt("altered")])
@pytest.mark.parametrize("lora", ["a", None])
def test_no_lora_counts_as_applied_after_a_change_that_failed(
    fakes: LoopBuilder, error: BaseException, lora: str | None
) -> None:
    loop, request = fakes.loop(), replace(RED, lora=lora)
    expected = loop.generate(request).pixels
    fakes.loras.fails = error
    with pytest.raises(type(error)):
        loop.generate(replace(RED, lora="b"))
    fakes.loras.fails = None
    assert loop.is_idle
    assert np.array_equal(loop.generate(request).pixels, expected)
    assert fakes.loras.applied[-1] == lora


# refusals and failures


def test_invalid_request_is_refused_and_leaves_nothing(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    with pytest.raises(InvalidRequest):
        loop.submit("a", replace(RED, height=65))
    assert loop.is_idle and loop.step() == []


def test_unknown_lora_is_refused(fakes: LoopBuilder) -> None:
    with pytest.raises(InvalidRequest, match="lora must be one of a, b, damaged; got 'c'") as caught:
        fakes.loop().submit("c1", replace(RED, lora="c"))
    assert caught.value.param == "lora"
    with pytest.raises(InvalidRequest, match="lora must be absent"):
        EngineLoop(fakes.pipeline).submit("c1", replace(RED, lora="c"))


def test_unusable_lora_fails_only_its_own_images(fakes: LoopBuilder) -> None:
    loop = fakes.loop(min_slice=0.0)
    submit(loop, "-1", "a1", "damaged1", "damaged2", "a2", "-2")
    events = remaining_events(loop)
    assert {event.key: str(event.error) for event in events if isinstance(event, Failed)} == {
        "damaged1": "a damaged file",
        "damaged2": "a damaged file",
    }
    assert {event.key for event in events if isinstance(event, Denoised)} == {"-1", "-2", "a1", "a2"}


def test_nan_fails_only_its_own_image(fakes: LoopBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = fakes.loop()
    alone = fakes.loop().generate(RED).pixels
    noise = fakes.pipeline.noise
    monkeypatch.setattr(
        fakes.pipeline, "noise", lambda seed, size: noise(seed, size) * (np.float32(np.nan) if seed == 13 else 1)
    )
    outcomes = run_workload(loop, [Arrival(RED, 0), Arrival(replace(RED, seed=13), 1), Arrival(RED, 1)])
    assert isinstance(outcomes[1], NonFiniteOutput)
    assert "latents after step 1 of 4" in str(outcomes[1])
    assert all(np.array_equal(outcomes[number].pixels, alone) for number in (0, 2))


def test_nan_in_both_branches_of_a_guided_image_is_one_failure(
    fakes: LoopBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = fakes.pipeline.noise
    monkeypatch.setattr(fakes.pipeline, "noise", lambda seed, size: noise(seed, size) * np.float32(np.nan))
    loop = fakes.loop()
    loop.submit("a", replace(RED, guidance_scale=1.5))
    events = remaining_events(loop)
    assert [event.key for event in events if isinstance(event, Failed)] == ["a"]
    assert not any(isinstance(event, Stepped | Denoised) for event in events)


@pytest.mark.parametrize("fails", ["enqueue", "wait"])
def test_loop_generates_under_another_lora_after_a_pass_has_raised(
    fakes: LoopBuilder, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    loop = fakes.loop()
    pipeline, passes = fakes.pipeline, 0
    enqueue, read = pipeline.step, pipeline.memory.read

    def step(*tensors: Any) -> None:
        nonlocal passes
        passes += 1
        if fails == "enqueue" and passes == 2:
            raise DeviceError("the second pass")
        enqueue(*tensors)

    def read_pass(tensor: Any) -> Any:
        return FailingReadback() if fails == "wait" and passes == 2 else read(tensor)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "step", step)
        patched.setattr(pipeline.memory, "read", read_pass)
        with pytest.raises(DeviceError, match="the second pass"):
            loop.generate(RED)
    for _ in range(3):  # a pass may be running
        loop.step()
    assert loop.is_idle
    image = loop.generate(replace(RED, lora="a"))
    assert fakes.loras.applied == ["a"]
    assert np.array_equal(image.pixels, fakes.loop().generate(replace(RED, lora="a")).pixels)


class FailingReadback:
    """A readback of a pass that failed on the device."""

    def wait(self) -> Array:
        raise DeviceError("the second pass")


# cancellation


def test_cancelled_image_takes_no_more_passes(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    loop.submit("a", replace(RED, num_inference_steps=100))
    for _ in range(3):
        loop.step()
    assert loop.cancel("a")
    assert not loop.cancel("a") and not loop.cancel("b")
    assert [type(event) for event in remaining_events(loop)] in ([], [Passed])  # a pass that was running, and no step
    assert fakes.graphs.rows["denoiser"] <= 3
    assert fakes.loop().generate(RED).seed == 7


def test_image_cancelled_while_waiting_for_its_lora(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    submit(loop, "a1")
    loop.step()  # announces it
    assert loop.cancel("a1")
    submit(loop, "b1", "-1")
    assert finish_order(loop) == ["-1", "b1"]
    assert fakes.loras.applied == ["b"]


def test_image_cancelled_while_its_prompt_is_encoded(fakes: LoopBuilder) -> None:
    """The prompt is cached for its LoRA, so it must not be encoded under the next one."""
    loop = fakes.loop()
    submit(loop, "a1")
    while not loop._scheduler.slots_taken:
        loop.step()
    loop.cancel("a1")
    loop.generate(RED)
    again = loop.generate(replace(RED, lora="a")).pixels
    assert np.array_equal(again, fakes.loop().generate(replace(RED, lora="a")).pixels)
