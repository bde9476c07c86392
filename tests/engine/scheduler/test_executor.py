"""Execution of batches: guidance, prompts, previews, and times of the stages."""

import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes.cuda import PASS_SECONDS
from fakes.loop_builder import (
    BATCHING,
    DEVICES,
    RED,
    Arrival,
    Device,
    LoopBuilder,
    guided,
    loop_builder,
    remaining_events,
    run_workload,
)
from fakes.manifest import MANIFEST
from fakes.step_peak import STEP_BYTES, peak_of

from benchmarks.overhead.http_clients import ENGINE_STAGES
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.sampling import rope
from engine.sampling.schedule import sigmas
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.events import Denoised, Stepped
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_schedule import LoraScheduler
from engine.scheduler.sample import Sample
from engine.scheduler.scheduler import Batch
from engine.size import Size

NEGATIVE = ("a blue star", "a blue star " * 12)  # of one length with RED, so in the same batches, and of another

# guidance


@pytest.mark.parametrize("negative", NEGATIVE)
@pytest.mark.parametrize(("normalization", "truncation"), [(0.0, 1.0), (0.5, 1.0), (0.5, 0.2)])
def test_guidance_moves_from_the_negative_prompt_to_the_positive_one(
    fakes: LoopBuilder, negative: str, normalization: float, truncation: float
) -> None:
    """diffusers' scale: positive + scale * (positive - negative), at every step before the truncation."""
    request = replace(
        RED,
        negative_prompt=negative,
        guidance_scale=2.5,
        cfg_normalization=normalization,
        cfg_truncation=truncation,
    )
    embeds = []
    for prompt in (request.prompt, request.negative_prompt):
        ids = fakes.pipeline.tokenize(prompt).ids
        padded = np.zeros((1, -(-len(ids) // 32) * 32), np.int64)
        padded[0, : len(ids)] = ids
        prompt_embeds = np.zeros((*padded.shape, 8), np.float32)
        fakes.graphs.prompt_encoder(
            {"input_ids": padded, "lengths": np.array([len(ids)]), "prompt_embeds": prompt_embeds}
        )
        embeds.append(prompt_embeds)
    latents, schedule = fakes.pipeline.noise(7, Size(96, 64)), sigmas(4, 3.0)
    for sigma, sigma_next in pairwise(schedule):
        outputs = []
        for prompt_embeds in embeds:
            cos, _ = rope.tables(MANIFEST.model.rope, 4, 6, prompt_embeds.shape[1])
            outputs.append(np.empty_like(latents))
            levels = {"sigma": np.array([sigma]), "sigma_next": np.array([sigma_next])}
            tensors = {"latents": latents, "latents_next": outputs[-1], "prompt_embeds": prompt_embeds, "rope_cos": cos}
            fakes.graphs.denoiser(tensors | levels)
        if 1 - sigma > truncation:
            latents = outputs[0]
        else:
            sides = (array[0] for array in (*outputs, latents))
            latents = guided(*sides, np.float32(2.5), normalization)[None]
    image = fakes.graphs.decode(latents).astype(int)
    assert np.abs(fakes.loop().generate(request).pixels - image).max() <= 1


def test_guidance_takes_two_passes_a_step_and_its_absence_one(fakes: LoopBuilder) -> None:
    fakes.loop().generate(replace(RED, negative_prompt="a blue star"))
    assert fakes.graphs.rows == {"prompt_encoder": 1, "denoiser": 4, "vae_decoder": 1}
    fakes.graphs.rows.clear()
    fakes.loop().generate(replace(RED, guidance_scale=1.0))
    assert fakes.graphs.rows == {"prompt_encoder": 2, "denoiser": 8, "guidance": 4, "vae_decoder": 1}


@pytest.mark.parametrize("negative", NEGATIVE)
def test_steps_after_the_truncation_take_one_pass(fakes: LoopBuilder, negative: str) -> None:
    """The noise levels of four steps at shift 3 are 1, 0.9, 0.75 and 0.5."""
    request = replace(RED, guidance_scale=1.0, negative_prompt=negative, cfg_truncation=0.2)
    fakes.loop(BatchTable()).generate(request)
    assert fakes.graphs.rows == {"prompt_encoder": 2, "denoiser": 6, "guidance": 2, "vae_decoder": 1}
    assert fakes.graphs.rows["denoiser"] == request.forwards(MANIFEST)
    assert fakes.graphs.batches == ([2, 2, 1, 1] if negative == NEGATIVE[0] else [1] * 6)


@pytest.mark.parametrize("negative", NEGATIVE)
def test_guided_steps_run_as_far_ahead_as_others(fake_plans: Path, negative: str) -> None:
    """This device runs nothing until the host waits for it."""
    builder = loop_builder(fake_plans, "device, late")
    loop = builder.loop()
    loop.submit("a", replace(RED, guidance_scale=2.0, negative_prompt=negative))
    executor, enqueue, ahead = loop._executor, loop._executor.enqueue, []

    def record(batch: Batch) -> None:
        passes = builder.graphs.rows["denoiser"]
        enqueue(batch)
        assert builder.graphs.rows["denoiser"] == passes, "the host waited for a pass"
        ahead.append(executor.running)

    executor.enqueue = record
    remaining_events(loop)
    assert ahead == [1] + [2] * (4 * len(set(NEGATIVE[: NEGATIVE.index(negative) + 1])) - 1)
    builder.pipeline.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", range(2, 6))
def test_image_in_the_slots_of_a_cancelled_guided_image_is_its_own(
    fake_plans: Path, device: Device, steps: int
) -> None:
    """The image is cancelled after one branch or both, and its last passes run while the next one begins."""
    builder = loop_builder(fake_plans, device, slots=2)
    other = replace(RED, seed=8, guidance_scale=3.0, negative_prompt=NEGATIVE[1])
    expected = builder.loop().generate(other).pixels
    outcomes = run_workload(builder.loop(), [Arrival(replace(other, seed=9), 0, steps), Arrival(other, 1)])
    assert np.array_equal(outcomes[1].pixels, expected)
    builder.pipeline.close()


@pytest.mark.parametrize("branch", [0, 1])
def test_nan_in_one_branch_fails_the_image_and_no_other(fakes: LoopBuilder, branch: int) -> None:
    request = replace(RED, guidance_scale=2.0, negative_prompt=NEGATIVE[1])
    expected = fakes.loop().generate(replace(request, seed=8)).pixels
    fakes.graphs.batches.clear()
    fakes.graphs.poisoned = 1 + branch  # both images share a pass for each branch
    outcomes = run_workload(fakes.loop(), [Arrival(request), Arrival(replace(request, seed=8))])
    assert "latents after step 1 of 4" in str(outcomes[0])
    assert np.array_equal(outcomes[1].pixels, expected)


def test_empty_negative_prompt_is_encoded(fakes: LoopBuilder) -> None:
    empty, blank = (replace(RED, guidance_scale=2.0, negative_prompt=text) for text in ("", "a blue star"))
    assert not np.array_equal(fakes.loop().generate(empty).pixels, fakes.loop().generate(blank).pixels)


# prompts


def test_repeated_prompt_is_encoded_once(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    for prompt in ("a red circle", "a red circle", "a blue one", "a red circle"):
        loop.generate(replace(RED, prompt=prompt))
    assert fakes.graphs.rows["prompt_encoder"] == 2
    assert (loop.prompt_cache.hits, loop.prompt_cache.misses) == (2, 2)


def test_prompt_is_encoded_once_for_each_lora(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    for lora in (None, "a", None, "a"):
        loop.generate(replace(RED, lora=lora))
    assert fakes.graphs.rows["prompt_encoder"] == 2


# previews


@pytest.mark.parametrize(
    ("previews", "steps"), [(0, []), (1, [4]), (2, [3, 5]), (3, [2, 4, 6]), (7, list(range(1, 8)))]
)
def test_previews_are_spread_over_the_steps(fakes: LoopBuilder, previews: int, steps: list[int]) -> None:
    loop = fakes.loop()
    loop.submit("a", replace(RED, num_inference_steps=8), previews)
    shown = [event for event in remaining_events(loop) if isinstance(event, Stepped) and event.estimate is not None]
    assert [event.done for event in shown] == steps
    assert all(event.estimate.shape == (16, 8, 12) for event in shown)


@pytest.mark.parametrize(("guidance", "negative"), [(0.0, ""), *((2.0, text) for text in NEGATIVE)])
def test_preview_equals_the_image_of_a_single_step(fakes: LoopBuilder, guidance: float, negative: str) -> None:
    """The first preview of two steps: noise - velocity, from the latents before and after."""
    request = replace(RED, num_inference_steps=2, guidance_scale=guidance, negative_prompt=negative)
    loop = fakes.loop()
    loop.submit("a", request, previews=1)
    (shown,) = [event for event in remaining_events(loop) if isinstance(event, Stepped) and event.estimate is not None]
    one_step = fakes.loop()
    one_step.submit("b", replace(request, num_inference_steps=1), previews=0)
    (denoised,) = [event for event in remaining_events(one_step) if isinstance(event, Denoised)]
    image = fakes.graphs.decode(shown.estimate[None]).astype(int)
    assert np.abs(denoised.pending.finish().pixels - image).max() <= 1


# times and memory


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_steps_allocate_no_arrays(nano: Pipeline, guidance: float) -> None:
    loop = EngineLoop(nano, BATCHING)
    for side in (256, 64):
        request = ImageRequest("a red circle", side, side, guidance_scale=guidance, cfg_normalization=1.0)
        loop.generate(request)  # binds the arrays
        assert peak_of(lambda on_step, request=request: loop.generate(request, on_step)) < STEP_BYTES


def test_time_until_an_image_is_finished_is_not_decoding_time(fakes: LoopBuilder) -> None:
    """The server estimates its queue from the decoding time."""
    loop = fakes.loop()
    loop.submit("a", RED)
    pending_images = []
    while not loop.is_idle:
        pending_images += [event.pending for event in loop.step() if isinstance(event, Denoised)]
    idle_since = time.perf_counter()
    time.sleep(0.3)
    idle = time.perf_counter() - idle_since
    assert pending_images[0].finish().seconds.vae_decoder < idle


@pytest.mark.parametrize("device", ["device, late", "device, eager"])
def test_device_time_is_charged_to_the_images_that_used_it(
    fake_plans: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoding runs behind a pass that was enqueued before it; its time counts for neither that pass nor the next."""
    charged: dict[int, float] = Counter()
    charge = LoraScheduler.charge

    def record(loras: LoraScheduler, image: Sample, seconds: float) -> None:
        charged[image.size.height] += seconds
        charge(loras, image, seconds)

    monkeypatch.setattr(LoraScheduler, "charge", record)
    builder = loop_builder(fake_plans, device)
    large = replace(RED, prompt="a blue star", height=256, num_inference_steps=2)
    arrivals = [Arrival(large), *(Arrival(replace(RED, seed=seed)) for seed in range(3))]
    outcomes = run_workload(builder.loop(BatchTable()), arrivals)
    for number, arrival in enumerate(arrivals):
        seconds, passes = outcomes[number].seconds, arrival.request.num_inference_steps
        assert seconds.passes == pytest.approx(passes * PASS_SECONDS)
        assert seconds.vae_decoder == pytest.approx(PASS_SECONDS)
    assert charged[256] == pytest.approx((1 + 2 + 1) * PASS_SECONDS)  # prompt, passes, image
    assert charged[64] == pytest.approx((1 + 12 + 2) * PASS_SECONDS)  # the last decoding delays no other size
    builder.pipeline.close()


def test_time_of_a_prompt_is_not_time_of_passes(fake_plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's estimates add both."""
    builder = loop_builder(fake_plans, "host")
    encode = builder.pipeline.encode_prompt
    monkeypatch.setattr(builder.pipeline, "encode_prompt", lambda prompts: (time.sleep(0.2), encode(prompts))[1])
    seconds = builder.loop().generate(RED).seconds
    assert seconds.prompt_encoder > max(0.2, seconds.passes)


def test_stage_times_cover_the_whole_image(fake_plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`zimage-bench http` attributes the rest of a request to HTTP, so no work of the engine may be left out."""
    builder = loop_builder(fake_plans, "host")
    decode = builder.pipeline.decode
    monkeypatch.setattr(builder.pipeline, "decode", lambda latents: (time.sleep(0.2), decode(latents))[1])
    started = time.perf_counter()
    seconds = builder.loop().generate(RED).seconds
    generated = time.perf_counter() - started
    assert generated / 2 < sum(getattr(seconds, stage) for stage in ENGINE_STAGES) <= generated


def test_step_does_not_wait_for_pixels_of_two_images_that_end_with_it(fake_plans: Path) -> None:
    builder = loop_builder(fake_plans, "device, late")
    loop = builder.loop()
    for seed in range(2):
        loop.submit(str(seed), replace(RED, seed=seed))
    pending_images = [event.pending for event in remaining_events(loop) if isinstance(event, Denoised)]
    assert [pending._outcome for pending in pending_images] == [None, None]
    builder.pipeline.synchronize()
    builder.pipeline.close()
