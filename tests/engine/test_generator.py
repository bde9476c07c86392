"""`ImageGenerator`: the same images as the loop's, callbacks, files, errors."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import ImageGenerator
from engine.errors import InvalidRequest, LoraMismatch, NonFiniteOutput, PlanNotFound
from engine.generator import Progress
from engine.images.preparation import Preparation
from engine.images.source import read_init_image
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.request import ImageRequest, LoraChoice
from engine.scheduler.events import Failed
from engine.scheduler.lora_registry import LoraRegistry
from nano.scenes import COLOURS

PROMPT = "a red circle"
SIZE = (64, 80)


@pytest.fixture(scope="module")
def generator(engines: Path) -> Iterator[ImageGenerator]:
    with ImageGenerator(engines, RuntimeOptions(threads=1, slots=4)) as generator:
        yield generator


def test_image_is_the_pipelines_and_its_file_has_the_metadata(
    generator: ImageGenerator, engines: Path, tmp_path: Path
) -> None:
    image = generator.generate(PROMPT, size=SIZE, seed=7, steps=2)
    with Pipeline.load(engines, RuntimeOptions(threads=1)) as pipeline:
        expected = pipeline.generate(ImageRequest(PROMPT, *SIZE, seed=7, num_inference_steps=2)).pixels
    assert np.array_equal(image.pixels, expected)
    assert (image.seed, image.size) == (7, SIZE)
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert np.array_equal(np.asarray(saved), expected)
        facts = json.loads(saved.info["zimage-trt"])
    assert (facts["prompt"], facts["seed"], facts["num_inference_steps"]) == (PROMPT, 7, 2)
    assert facts["plan_id"] == generator.manifest.plan_id


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("a", "PNG")]
)
def test_suffix_chooses_the_format(generator: ImageGenerator, tmp_path: Path, name: str, kind: str) -> None:
    generator.generate(PROMPT, size=SIZE, seed=7, steps=1).save(str(tmp_path / name))
    with Image.open(tmp_path / name) as saved:
        assert (saved.format, saved.size) == (kind, SIZE)


def test_unknown_suffix_is_refused_and_nothing_is_written(generator: ImageGenerator, tmp_path: Path) -> None:
    image = generator.generate(PROMPT, size=SIZE, steps=1)
    with pytest.raises(InvalidRequest, match=r"a\.gif must end in \.png, \.jpg, \.jpeg, \.webp; got \.gif"):
        image.save(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_list_gives_an_image_per_prompt_in_order_with_seeds_that_follow(generator: ImageGenerator) -> None:
    prompts = [PROMPT, "a blue star", "a green square"]
    images = generator.generate(prompts, size=SIZE, seed=7, steps=1)
    assert [image.seed for image in images] == [7, 8, 9]
    for prompt, image in zip(prompts, images, strict=True):
        alone = generator.generate(prompt, size=SIZE, seed=image.seed, steps=1)
        assert np.abs(image.pixels.astype(int) - alone.pixels).max() <= 1  # rounding, if they shared a pass
    assert [image.seed for image in generator.generate(prompts[:2], size=SIZE, seed=[5, 5], steps=1)] == [5, 5]
    assert generator.generate([]) == []


def test_random_seeds_differ_between_calls(generator: ImageGenerator) -> None:
    seeds = {generator.generate(PROMPT, size=SIZE, steps=1, seed=seed).seed for seed in (None, None, -1)}
    assert len(seeds) == 3


def test_guidance_and_negative_prompt_change_the_image(generator: ImageGenerator) -> None:
    plain, guided, negative = (
        generator.generate(PROMPT, size=SIZE, seed=7, steps=1, guidance_scale=scale, negative_prompt=text).pixels
        for scale, text in ((0.0, ""), (2.0, ""), (2.0, "a blue star"))
    )
    assert not np.array_equal(plain, guided) and not np.array_equal(guided, negative)


def test_callback_gets_every_step_and_previews_of_the_images_size(generator: ImageGenerator) -> None:
    seen: list[Progress] = []
    generator.generate([PROMPT, PROMPT], size=SIZE, seed=7, steps=4, previews=1, on_progress=seen.append)
    for index in (0, 1):
        own = [progress for progress in seen if progress.index == index]
        assert [(progress.done, progress.steps) for progress in own] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        shapes = [None if progress.preview is None else progress.preview.shape for progress in own]
        assert shapes == [None, (80, 64, 3), None, None]


def test_exception_of_a_callback_ends_the_call_and_the_generator_stays_usable(generator: ImageGenerator) -> None:
    def stop(_: Progress) -> None:
        raise ZeroDivisionError

    before = generator.generate(PROMPT, size=SIZE, seed=7, steps=1).pixels
    with pytest.raises(ZeroDivisionError):
        generator.generate([PROMPT] * 3, size=SIZE, steps=3, on_progress=stop)
    assert np.array_equal(generator.generate(PROMPT, size=SIZE, seed=7, steps=1).pixels, before)


def test_wrong_request_of_a_list_is_refused_before_any_image(generator: ImageGenerator) -> None:
    seen: list[Progress] = []
    with pytest.raises(InvalidRequest, match="prompt must not be empty") as refusal:
        generator.generate([PROMPT, " "], size=SIZE, steps=1, on_progress=seen.append)
    assert (refusal.value.param, seen) == ("prompt", [])
    with pytest.raises(InvalidRequest, match="one for each of 2 prompts, got 1"):
        generator.generate([PROMPT, PROMPT], seed=[7])


def test_failed_image_is_yielded_and_the_others_go_on(
    generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, error = generator._loop, NonFiniteOutput("the latents hold NaN or Inf")
    step = loop.step

    def overflow() -> list[object]:
        events = step()
        for event in events:
            if getattr(event, "key", "").endswith("/0"):
                loop.cancel(event.key)
                return [Failed(event.key, error)]
        return events

    monkeypatch.setattr(loop, "step", overflow)
    requests = [ImageRequest(PROMPT, *SIZE, seed=seed, num_inference_steps=2) for seed in (7, 8)]
    outcomes = dict(generator.run(requests))
    assert outcomes[0] is error and outcomes[1].seed == 8
    with pytest.raises(NonFiniteOutput):
        generator.generate([PROMPT, PROMPT], size=SIZE, steps=2)


def test_second_call_during_an_iteration_is_refused_until_it_is_closed(generator: ImageGenerator) -> None:
    outcomes = generator.run([ImageRequest(PROMPT, *SIZE, num_inference_steps=1)] * 2)
    next(outcomes)
    with pytest.raises(RuntimeError, match="the generator is in use"):
        generator.generate(PROMPT, size=SIZE, steps=1)
    outcomes.close()
    assert generator.generate(PROMPT, size=SIZE, steps=1).size == SIZE


def test_missing_plans_and_unusable_loras_are_refused(engines: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanNotFound, match="no plan directory at"):
        ImageGenerator(str(tmp_path / "nowhere"))
    with pytest.raises(LoraMismatch, match=r"LoRA outlines: cannot read .*outlines\.lora"):
        ImageGenerator(engines, loras={"outlines": tmp_path / "outlines.lora"})


def test_lora_is_applied_for_its_images_and_named_in_their_files(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str | None] = []

    def apply(_: LoraRegistry, choice: LoraChoice | None) -> Iterator[None]:
        applied.append(choice and choice.name)
        yield from ()

    monkeypatch.setattr(LoraRegistry, "check", lambda _: ())
    monkeypatch.setattr(LoraRegistry, "apply", apply)
    loras = {"outlines": tmp_path / "outlines.lora"}
    with ImageGenerator(engines, RuntimeOptions(threads=1), loras=loras) as generator:
        images = [generator.generate(PROMPT, size=SIZE, steps=1, lora=name) for name in ("outlines", None)]
    assert applied == ["outlines", None]
    assert [json.loads(image.text["zimage-trt"])["lora"] for image in images] == ["outlines", None]


def test_unknown_lora_names_the_field(generator: ImageGenerator) -> None:
    with pytest.raises(InvalidRequest, match="lora must be absent") as refusal:
        generator.generate(PROMPT, lora="outlines")
    assert refusal.value.param == "lora"


def test_numbered_request_keeps_all_but_the_seed() -> None:
    request = ImageRequest(PROMPT, *SIZE, seed=2**64 - 1)
    assert request.numbered(1) == replace(request, seed=0)


def test_package_is_imported_without_numpy() -> None:
    program = (
        "import sys, engine; assert 'numpy' not in sys.modules; engine.ImageGenerator; assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    with pytest.raises(ImportError, match="cannot import name 'Images'"):
        exec("from engine import Images")


# images from another one


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 83 x 70 pixels: no multiple of 16."""
    file = tmp_path_factory.mktemp("images") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 83, 3), np.uint8)).save(file)
    return file


def left_half(width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


def test_image_to_start_from_may_be_a_file_bytes_a_picture_or_an_array(generator: ImageGenerator, photo: Path) -> None:
    picture = Image.open(photo)
    mask = left_half(83, 70)
    as_picture = Image.fromarray(mask)
    images = [
        generator.generate(PROMPT, image=image, mask=mask, seed=7, steps=2)
        for image, mask in (
            (photo, as_picture),
            (str(photo), mask),
            (photo.read_bytes(), mask.astype(np.uint8) * 255),
            (picture, mask),
            (np.asarray(picture), mask),
        )
    ]
    assert all(np.array_equal(image.pixels, images[0].pixels) for image in images)
    assert (images[0].size, images[0].num_inference_steps) == ((80, 64), 2)


def test_prompts_share_an_image_and_its_file_tells_the_strength(
    generator: ImageGenerator, photo: Path, tmp_path: Path
) -> None:
    images = generator.generate([PROMPT, "a blue star"], image=photo, strength=0.5, seed=7, steps=2)
    again = generator.generate("a blue star", image=photo, strength=0.5, seed=8, steps=2)
    assert np.abs(images[1].pixels.astype(int) - again.pixels).max() <= 1
    images[0].save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        facts = json.loads(saved.info["zimage-trt"])
        assert "Denoising strength: 0.5" in saved.info["parameters"]
    assert (facts["strength"], facts["num_inference_steps"], facts["forwards"]) == (0.5, 2, 1)
    assert len(facts["init_image"]) == 64


def test_default_strength_is_0_6_and_with_a_mask_1(generator: ImageGenerator, photo: Path) -> None:
    steps = []
    for mask in (None, left_half(83, 70)):
        generator.generate(PROMPT, image=photo, mask=mask, steps=5, on_progress=lambda p: steps.append(p.steps))
    assert steps == [3] * 3 + [5] * 5


def test_kept_part_is_close_to_the_image_and_the_rest_is_not(generator: ImageGenerator) -> None:
    """z-image-nano draws plain backgrounds: from a blue one and a prompt for a yellow one."""
    blue = np.broadcast_to(np.array(COLOURS["blue"], np.uint8), (64, 128, 3))
    mask = left_half(128, 64)
    image = generator.generate("a red circle on a yellow background", image=blue, mask=mask, seed=7).pixels.astype(int)
    assert np.abs(image - blue)[:, 80:].mean() < 8
    assert np.abs(image - blue)[:, :48].mean() > 64


def test_crop_to_the_mask_changes_only_the_pixels_around_it(generator: ImageGenerator, photo: Path) -> None:
    original = np.asarray(Image.open(photo))
    mask = np.zeros((70, 83), bool)
    mask[30:40, 20:35] = True
    image = generator.generate(
        PROMPT, image=photo, mask=mask, size=(64, 64), padding_mask_crop=8, mask_blur=2, seed=7, steps=2
    )
    changed = (image.pixels != original).any(axis=2)
    assert image.size == (83, 70)
    assert changed[mask].mean() > 0.9
    reach = 8  # pixels that a blur of 2 can reach
    mask[30 - reach : 40 + reach, 20 - reach : 35 + reach] = True
    assert not changed[~mask].any()


def test_explicit_size_crops_or_stretches(generator: ImageGenerator, photo: Path) -> None:
    crop, stretch = (
        generator.generate(PROMPT, image=photo, size=(64, 128), resize_mode=mode, strength=0.01, seed=7).pixels
        for mode in ("crop", "stretch")
    )
    assert crop.shape == stretch.shape == (128, 64, 3)
    assert not np.array_equal(crop, stretch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": left_half(8, 8)}, "mask needs an image to start from"),
        ({"strength": 0.5}, "strength needs an image to start from"),
        ({"padding_mask_crop": 4}, "padding_mask_crop needs an image to start from"),
        ({"image": np.zeros((64, 64, 3))}, r"image must be an array .* of uint8 or bool, got \[64, 64, 3\] of float64"),
        ({"image": np.zeros((64, 64, 2), np.uint8)}, r"got \[64, 64, 2\] of uint8"),
        ({"image": np.zeros((0, 64, 3), np.uint8)}, "image must have pixels"),
        ({"image": b"no image"}, "image must be a PNG, JPEG, WebP, GIF or BMP file"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "strength": 0.0}, "strength must be above 0"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "mask": np.zeros((64, 64), bool)}, "mask must select something"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "padding_mask_crop": 4}, "padding_mask_crop needs a mask"),
    ],
)
def test_image_that_cannot_be_used_is_refused_before_anything_is_generated(
    generator: ImageGenerator, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        generator.generate(PROMPT, **arguments)


def test_generator_without_image_input_refuses_an_image(engines: Path, photo: Path) -> None:
    with ImageGenerator(engines, RuntimeOptions(threads=1, slots=2, image_input=False)) as generator:
        with pytest.raises(InvalidRequest, match="--no-image-input") as refusal:
            generator.generate(PROMPT, image=photo, steps=1)
        assert refusal.value.param == "init_image"
        assert generator.generate(PROMPT, size=SIZE, steps=1).size == SIZE


def test_missing_file_is_named(generator: ImageGenerator, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot read the image .*none\.png: No such file"):
        generator.generate(PROMPT, image=tmp_path / "none.png")


def test_run_finds_each_requests_image(generator: ImageGenerator, photo: Path) -> None:
    limits = generator.manifest.size_limits
    images = [read_init_image(photo, None, Preparation(limits, width)) for width in (64, 80)]
    requests = [ImageRequest(PROMPT, seed=7, num_inference_steps=2).starting_from(image, 0.5) for image in images]
    plain = ImageRequest(PROMPT, 64, 64, 7, 1)
    found = dict(generator.run([requests[1], plain, requests[0]], init_images=images))
    assert [found[index].size for index in range(3)] == [images[1].size, (64, 64), images[0].size]
    with pytest.raises(InvalidRequest, match="no image came with a request that needs one"):
        next(generator.run(requests, init_images=images[:1]))
