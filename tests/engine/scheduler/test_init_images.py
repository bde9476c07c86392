"""Images that begin with another one: first latents, the blend after each step, previews, and waits for the device."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes.loop_builder import (
    DEVICES,
    RED,
    Arrival,
    Device,
    LoopBuilder,
    blended,
    edited,
    guided,
    image_latents,
    loop_builder,
    remaining_events,
    run_workload,
)
from fakes.manifest import MANIFEST
from fakes.step_peak import STEP_BYTES, peak_of

from engine.errors import InvalidRequest
from engine.images.mask_crop import paste_back
from engine.init_image import Box, InitImage, Paste
from engine.pipeline import Pipeline
from engine.request import Edit, ImageRequest
from engine.sampling import rope
from engine.sampling.noise import Generator
from engine.sampling.schedule import sigmas
from engine.scheduler.events import Stepped
from engine.scheduler.loop import EngineLoop
from engine.scheduler.scheduler import Batch
from engine.size import Size

EDITED, INPAINTED = edited(RED, 0.6), edited(RED, 0.6, masked=True)
GUIDED = edited(replace(RED, guidance_scale=2.5, negative_prompt="a blue star " * 12), 0.8, masked=True)
NEGATIVES = ("a blue star", "a blue star " * 12)  # of one length with RED, so in the same batches, and of another


def expected(builder: LoopBuilder, arrival: Arrival) -> np.ndarray:
    """The pixels of an image, step by step from diffusers' formulas."""
    request, image = arrival.request, arrival.init_image
    shape = MANIFEST.model.latents_shape(image.size)
    generator = Generator(request.seed)
    start, noise = image_latents(image.pixel_array(), generator.randn(shape)), generator.randn(shape)
    mask = image.latents_mask(8) if image.is_inpainting else np.ones(shape[2:])
    schedule = sigmas(4, 3.0)[request.edit.skipped_steps(4) :]
    latents = (1 - schedule[0]) * start + schedule[0] * noise
    for sigma, sigma_next in pairwise(schedule):
        passed = [one_pass(builder, prompt, latents, sigma, sigma_next) for prompt in prompts(request)]
        latents = guided(*passed, latents, np.float32(request.guidance_scale)) if len(passed) > 1 else passed[0]
        latents = blended(latents, start, noise, mask, sigma_next)
    return builder.graphs.decode(latents.astype(np.float32)).astype(int)


def prompts(request: ImageRequest) -> list[str]:
    return [request.prompt, request.negative_prompt] if request.is_guided(MANIFEST) else [request.prompt]


def one_pass(builder: LoopBuilder, prompt: str, latents: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    ids = builder.pipeline.tokenize(prompt).ids
    padded = np.zeros((1, -(-len(ids) // 32) * 32), np.int64)
    padded[0, : len(ids)] = ids
    prompt_embeds = np.zeros((*padded.shape, 8), np.float32)
    builder.graphs.prompt_encoder(
        {"input_ids": padded, "lengths": np.array([len(ids)]), "prompt_embeds": prompt_embeds}
    )
    _, _, h, w = latents.shape
    tensors = {
        "latents": latents.astype(np.float32),
        "latents_next": np.empty(latents.shape, np.float32),
        "prompt_embeds": prompt_embeds,
        "rope_cos": rope.tables(MANIFEST.model.rope, h // 2, w // 2, padded.shape[1])[0],
        "sigma": np.array([sigma]),
        "sigma_next": np.array([sigma_next]),
    }
    builder.graphs.denoiser(tensors)
    return tensors["latents_next"]


@pytest.mark.parametrize("negative", [None, *NEGATIVES])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_steps_follow_diffusers_formulas(
    fakes: LoopBuilder, strength: float, masked: bool, negative: str | None
) -> None:
    """The first randn samples the posterior and the second one is the noise; the blend is at the next noise level."""
    request = RED if negative is None else replace(RED, guidance_scale=2.5, negative_prompt=negative)
    arrival = edited(request, strength, masked=masked)
    pixels = fakes.loop().generate(arrival.request, init_image=arrival.init_image).pixels
    assert np.abs(pixels - expected(fakes, arrival)).max() <= 1


def test_kept_part_is_the_init_image_and_the_rest_is_not(fakes: LoopBuilder) -> None:
    arrival = edited(RED, 1.0, masked=True)
    image, seed = arrival.init_image, RED.seed
    shape = MANIFEST.model.latents_shape(image.size)
    start = image_latents(image.pixel_array(), Generator(seed).randn(shape))
    kept = fakes.graphs.decode(start.astype(np.float32))
    pixels = fakes.loop().generate(arrival.request, init_image=image).pixels
    same = (pixels == kept).all(axis=2)
    assert (same[image.mask_array() == 0]).all()
    assert same[image.mask_array() == 255].mean() < 0.1


@pytest.mark.parametrize(("strength", "steps", "forwards"), [(0.01, 4, 1), (0.5, 4, 2), (0.6, 8, 5), (1.0, 3, 3)])
def test_init_image_saves_the_passes_of_the_first_steps(
    fakes: LoopBuilder, strength: float, steps: int, forwards: int
) -> None:
    arrival = edited(replace(RED, num_inference_steps=steps), strength)
    loop = fakes.loop()
    loop.submit("a", arrival.request, init_image=arrival.init_image)
    done = [(event.done, event.steps) for event in remaining_events(loop) if isinstance(event, Stepped)]
    assert done == [(step, forwards) for step in range(1, forwards + 1)]
    assert fakes.graphs.rows["denoiser"] == arrival.request.forwards(MANIFEST) == forwards
    image = fakes.loop().generate(arrival.request, init_image=arrival.init_image)
    assert image.num_inference_steps == steps
    assert image.seconds.vae_encoder > 0


def test_image_is_encoded_once_and_blended_only_if_it_is_inpainted(fakes: LoopBuilder) -> None:
    for arrival, blends in ((EDITED, 1), (INPAINTED, 1 + 3), (GUIDED, 1 + 4)):
        fakes.graphs.rows.clear()
        fakes.loop().generate(arrival.request, init_image=arrival.init_image)
        assert (fakes.graphs.rows["vae_encoder"], fakes.graphs.rows["blend"]) == (1, blends)


@pytest.mark.parametrize("arrival", [EDITED, INPAINTED])
def test_loop_equals_pipeline(fakes: LoopBuilder, arrival: Arrival) -> None:
    ours = fakes.loop().generate(arrival.request, init_image=arrival.init_image)
    alone = fakes.pipeline.generate(arrival.request, init_image=arrival.init_image)
    assert np.array_equal(ours.pixels, alone.pixels)
    assert (alone.num_inference_steps, alone.seconds.vae_encoder > 0) == (4, True)


@pytest.mark.parametrize("arrival", [EDITED, INPAINTED, GUIDED])
@pytest.mark.parametrize("device", DEVICES)
def test_image_in_the_slots_of_a_cancelled_one_is_its_own(fake_plans: Path, device: Device, arrival: Arrival) -> None:
    builder = loop_builder(fake_plans, device, slots=2)
    other = edited(replace(arrival.request, seed=9, edit=None), 1.0, seed=3, masked=True)
    alone = builder.loop().generate(arrival.request, init_image=arrival.init_image).pixels
    for cancel_at in range(1, 6):
        outcomes = run_workload(builder.loop(), [replace(other, cancel_at=cancel_at), replace(arrival, submit_at=1)])
        assert np.array_equal(outcomes[1].pixels, alone)
    builder.pipeline.close()


# previews


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("arrival", [EDITED, INPAINTED, GUIDED])
def test_first_preview_follows_the_first_step(fakes: LoopBuilder, arrival: Arrival, others: int) -> None:
    """From the noised image to the end of the first step's velocity; others begin beside it."""
    loop = fakes.loop()
    for seed in range(others):
        beside = edited(replace(RED, seed=seed), 1.0, seed=seed)
        loop.submit(str(seed), beside.request, previews=3, init_image=beside.init_image)
    loop.submit("a", arrival.request, previews=3, init_image=arrival.init_image)
    steps = [event for event in remaining_events(loop) if isinstance(event, Stepped) and event.key == "a"]
    shape = MANIFEST.model.latents_shape(arrival.init_image.size)
    generator = Generator(RED.seed)
    start, noise = image_latents(arrival.init_image.pixel_array(), generator.randn(shape)), generator.randn(shape)
    skipped = arrival.request.edit.skipped_steps(4)
    sigma, sigma_next = sigmas(4, 3.0)[skipped : skipped + 2]
    before = (1 - sigma) * start + sigma * noise
    passed = [one_pass(fakes, text, before, sigma, sigma_next) for text in prompts(arrival.request)]
    after = guided(*passed, before, np.float32(2.5)) if len(passed) > 1 else passed[0]
    if arrival.init_image.is_inpainting:
        after = blended(after, start, noise, arrival.init_image.latents_mask(8), sigma_next)
    finished = after - sigma_next * (after - before) / (sigma_next - sigma)
    assert np.allclose(steps[0].estimate, finished[0], atol=1e-3)
    assert [event.estimate is not None for event in steps] == [True] * (len(steps) - 1) + [False]


# the device


@pytest.mark.parametrize("masked", [False, True])
def test_image_that_joins_waits_for_no_pass(fake_plans: Path, masked: bool) -> None:
    """This device runs nothing until the host waits for it."""
    builder = loop_builder(fake_plans, "device, late")
    loop = builder.loop()
    executor, enqueue, ahead = loop._executor, loop._executor.enqueue, []

    def record(batch: Batch) -> None:
        passes = builder.graphs.rows["denoiser"]
        enqueue(batch)
        assert builder.graphs.rows["denoiser"] == passes, "the host waited for a pass"
        ahead.append(executor.running)

    executor.enqueue = record
    for seed in range(5):
        arrival = edited(replace(RED, seed=seed), 1.0, seed=seed, masked=masked)
        loop.submit(str(seed), arrival.request, init_image=arrival.init_image)
        loop.step()
        if seed:
            loop.step()
    remaining_events(loop)
    assert max(ahead) == 2
    builder.pipeline.close()


@pytest.mark.parametrize("masked", [False, True])
def test_steps_allocate_no_arrays(nano: Pipeline, masked: bool) -> None:
    loop = EngineLoop(nano)
    for side in (256, 64):
        arrival = edited(replace(RED, width=side, height=side, num_inference_steps=8), 1.0, masked=masked)
        loop.generate(arrival.request, init_image=arrival.init_image)  # binds the arrays
        peak = peak_of(lambda step, it=arrival: loop.generate(it.request, step, init_image=it.init_image))
        assert peak < STEP_BYTES


# results and refusals


@pytest.mark.parametrize("through", ["loop", "pipeline"])
def test_result_is_pasted_into_the_original(fakes: LoopBuilder, through: str) -> None:
    chance, whole = np.random.default_rng(0), edited(RED, 1.0, masked=True)
    original = Size(300, 200)
    box, soft = Box(20, 30, 220, 163), chance.integers(0, 256, (133, 200), np.uint8)
    paste = Paste(original, chance.integers(0, 256, (200, 300, 3), np.uint8).tobytes(), box, soft.tobytes())
    image = replace(whole.init_image, paste=paste)
    request = RED.starting_from(image, 1.0)
    generator = fakes.loop() if through == "loop" else fakes.pipeline
    pixels = generator.generate(request, init_image=image).pixels
    assert pixels.shape == (200, 300, 3)
    inner = generator.generate(whole.request, init_image=whole.init_image).pixels
    assert np.array_equal(pixels, paste_back(inner, image))


def test_request_and_init_image_must_belong_together(fakes: LoopBuilder) -> None:
    loop = fakes.loop()
    small = edited(replace(RED, width=64), 0.6).init_image
    for request, image, message in (
        (EDITED.request, None, "no image came with a request that needs one"),
        (RED, EDITED.init_image, "an image came with a request that needs none"),
        (EDITED.request, small, r"96x64 without a mask; got 64x64 without a mask"),
        (EDITED.request, INPAINTED.init_image, r"96x64 without a mask; got 96x64 with a mask"),
    ):
        for generate in (loop.generate, fakes.pipeline.generate):
            with pytest.raises(InvalidRequest, match=message) as refusal:
                generate(request, init_image=image)
            assert refusal.value.param == "init_image"
    assert loop.is_idle


def test_plans_without_the_graphs_refuse_an_init_image(fakes: LoopBuilder) -> None:
    fakes.pipeline.manifest = MANIFEST.without_image_input()
    with pytest.raises(InvalidRequest, match="--no-image-input") as refusal:
        fakes.loop().generate(EDITED.request, init_image=EDITED.init_image)
    assert refusal.value.param == "init_image"
    fakes.loop().generate(RED)


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (0.0, r"strength must be above 0 \(0\.01 runs one of 4 steps\), got 0"),
        (1e-20, r"strength must be above 0 \(0\.01 runs one of 4 steps\), got 1e-20"),
        (-0.1, r"strength must be between 0 and 1, got -0\.1"),
        (1.01, r"strength must be between 0 and 1, got 1\.01"),
        (float("nan"), "strength must be between 0 and 1, got nan"),
    ],
)
def test_strength_that_leaves_no_step_or_is_out_of_range_is_refused(
    fakes: LoopBuilder, strength: float, message: str
) -> None:
    request = replace(EDITED.request, edit=Edit(strength, ""))
    with pytest.raises(InvalidRequest, match=message) as refusal:
        fakes.loop().generate(request, init_image=EDITED.init_image)
    assert refusal.value.param == "strength"


def test_prompt_may_be_empty_with_an_init_image(fakes: LoopBuilder) -> None:
    request = replace(EDITED.request, prompt="")
    assert fakes.loop().generate(request, init_image=EDITED.init_image).pixels.shape == (64, 96, 3)
    assert isinstance(EDITED.init_image, InitImage)
