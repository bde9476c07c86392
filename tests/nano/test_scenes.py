"""Scenes, their captions, and the judge that compares an image with a scene."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from tokenizers import Tokenizer

from nano.captions import ZH_COLOURS, ZH_SHAPES, caption
from nano.judge import KEPT_MARGIN, Verdict, find_pieces, fit_background, judge, shares, untouched
from nano.scenes import (
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    Background,
    Scene,
    Thing,
    draw,
    random_scene,
    training_scene,
    with_another_first_thing,
)
from nano.tokenizer import train_tokenizer

seeds = st.integers(0, 2**32)
sizes = st.sampled_from((*SIZES, (512, 512), (176, 400)))
PAIR = Scene((Thing("circle", "red"), Thing("square", "blue")), "left of", Background("yellow", "yellow"))


def misses(verdict: Verdict) -> dict[str, tuple[int, int]]:
    return {name: counts for name, counts in verdict.items() if counts[0] != counts[1]}


@settings(max_examples=150, deadline=None)
@given(seeds, sizes)
def test_judge_finds_nothing_missing_in_a_drawn_scene(seed: int, size: tuple[int, int]) -> None:
    rng = Random(seed)
    scene = random_scene(rng)
    image = draw(scene, *size, rng)
    assert image.shape == (*size, 3)
    assert misses(judge(image, scene)) == {}


def test_judge_scores_swapped_captions_near_chance() -> None:
    """Chance level: one colour in ten, one shape in eight, one place in nine or one relation in two."""
    rng = Random(0)
    scenes = [random_scene(rng) for _ in range(201)]
    images = [draw(scene, 128, 128, rng) for scene in scenes]
    assert shares([]) == {}
    scores = shares([judge(image, other) for image, other in zip(images, scenes[1:], strict=False)])
    assert max(scores["colour"], scores["shape"], scores["background"]) < 0.25
    assert scores["place"] < 0.4


@pytest.mark.parametrize(
    ("asked", "missed"),
    [
        (replace(PAIR, things=PAIR.things[::-1]), {"place"}),
        (replace(PAIR, place="above"), {"place"}),
        (replace(PAIR, background=Background("yellow", "white")), {"background"}),
        (replace(PAIR, things=(Thing("circle", "red"), Thing("square", "green"))), {"colour"}),
        (replace(PAIR, things=(Thing("circle", "red"), Thing("star", "blue"))), {"shape"}),
        (replace(PAIR, things=(Thing("circle", "blue"), Thing("square", "red"))), {"colour"}),
        (replace(PAIR, things=(Thing("circle", "red", "large"), Thing("square", "blue"))), {"size"}),
        (replace(PAIR, things=PAIR.things[:1], place=None), {"count"}),
    ],
)
def test_each_attribute_is_judged_by_itself(asked: Scene, missed: set[str]) -> None:
    assert set(misses(judge(draw(PAIR, 192, 192, Random(1)), asked))) == missed


@pytest.mark.parametrize("value", [0, 127, 255])
def test_flat_image_scores_zero(value: int) -> None:
    image = np.full((128, 128, 3), value, np.uint8)
    assert find_pieces(image, fit_background(image)) == ([], 0)
    assert max(shares([judge(image, PAIR)]).values()) == 0


def centre(shape: str, image: str = "white") -> tuple[Scene, np.ndarray]:
    scene = Scene((Thing(shape, "red", "large"),), "centre", Background(image, image))
    return scene, draw(scene, 128, 128, Random(0))


def test_neighbouring_place_is_judged_wrong() -> None:
    for place in CELLS:
        scene = Scene((Thing("circle", "red"),), place, Background("white", "white"))
        images = [draw(scene, 192, 128, Random(seed)) for seed in range(10)]
        for other in CELLS:
            held = [misses(judge(image, replace(scene, place=other))) == {} for image in images]
            assert held == [other == place] * 10, (place, other)


@pytest.mark.parametrize("seed", range(10))
def test_scene_without_a_place_is_drawn_in_the_centre_or_side_by_side(seed: int) -> None:
    for scene, place in ((centre("circle")[0], "centre"), (PAIR, "left of")):
        image = draw(replace(scene, place=None), 192, 128, Random(seed))
        assert misses(judge(image, replace(scene, place=place))) == {}


def test_specks_second_colours_and_unnamed_colours_are_judged_wrong() -> None:
    scene, clean = centre("circle")
    specks = clean.copy()
    specks[4:124:12, 2:22:4] = 0
    specks[5:125:12, 2:22:4] = 0
    specks[6:126:12, 2:22:4] = 0
    assert set(misses(judge(specks, scene))) == {"count"}
    halves = clean.copy()
    halves[:, :62][(clean[:, :62] == COLOURS["red"]).all(axis=-1)] = COLOURS["blue"]
    assert set(misses(judge(halves, scene))) == {"colour"}
    brown = clean.copy()
    brown[(clean == COLOURS["red"]).all(axis=-1)] = (120, 72, 10)
    assert set(misses(judge(brown, scene))) == {"colour"}


@pytest.mark.parametrize("seed", range(20))
def test_blur_and_noise_of_an_autoencoder_are_tolerated(seed: int) -> None:
    """A blur of a pixel and noise of 6 levels."""
    rng = Random(seed)
    scene = random_scene(rng)
    image = draw(scene, 128, 128, rng).astype(float)
    blurred = ndimage.gaussian_filter(image, (1, 1, 0))
    noisy = blurred + np.random.default_rng(seed).uniform(-6, 6, image.shape)
    assert misses(judge(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), scene)) == {}


def test_noise_scores_at_most_half() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert max(shares([judge(noise, PAIR)]).values()) <= 0.5


def test_untouched_is_the_share_of_kept_pixels_away_from_the_mask() -> None:
    original = draw(PAIR, 100, 100, Random(1))
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :40] = 255
    changed = original.copy()
    changed[:, : 40 + KEPT_MARGIN] = 255 - original[:, : 40 + KEPT_MARGIN]
    assert untouched(changed, original, mask) == 1.0
    changed[:13, 40 + KEPT_MARGIN :] = 255 - original[:13, 40 + KEPT_MARGIN :]
    assert untouched(changed, original, mask) == pytest.approx(0.87)
    faint = np.clip(original.astype(int) + 20, 0, 255).astype(np.uint8)
    assert untouched(faint, original, mask) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_another_first_thing_differs_in_shape_and_colour_only(seed: int) -> None:
    scene = random_scene(Random(seed))
    other = with_another_first_thing(scene, Random(seed))
    first, changed = scene.things[0], other.things[0]
    assert changed.shape != first.shape and changed.colour != first.colour and changed.size == first.size
    assert other == replace(scene, things=(changed, *scene.things[1:]))
    assert misses(judge(draw(other, 128, 128, Random(seed)), other)) == {}


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_unspecified_background_never_hides_a_thing(seed: int) -> None:
    scene = Scene((Thing("star", "orange"),), "centre", None)
    assert misses(judge(draw(scene, 128, 128, Random(seed)), scene)) == {}


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_equal_seeds_draw_equal_images(seed: int) -> None:
    first, second = (draw(random_scene(rng), 128, 192, rng) for rng in (Random(seed), Random(seed)))
    assert np.array_equal(first, second)


def test_outlines_leave_the_inside_empty() -> None:
    scene = Scene((Thing("square", "red", "large"),), "centre", Background("white", "white"))
    filled, outlined = (draw(scene, 128, 128, Random(0), style) for style in ("filled", "outlined"))  # type: ignore[arg-type]
    assert filled[64, 64].tolist() == list(COLOURS["red"])
    assert outlined[64, 64].tolist() == list(COLOURS["white"])
    assert (outlined == COLOURS["red"]).all(axis=-1).sum() > 100


def test_about_a_tenth_of_the_scenes_is_held_out_and_never_trained_on() -> None:
    rng = Random(0)
    assert 0.07 < np.mean([random_scene(rng).held_out for _ in range(2000)]) < 0.13
    assert not any(training_scene(rng).held_out for _ in range(500))


@given(seeds)
def test_captions_name_every_colour_and_shape_and_no_other(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng)
    english, chinese = caption(scene, "en", rng), caption(scene, "zh", rng)
    said = [*(t.colour for t in scene.things), *(t.shape for t in scene.things)]
    said += [scene.background.start, scene.background.end] if scene.background else []
    for word in said:
        assert word in english
        assert (ZH_COLOURS | ZH_SHAPES)[word] in chinese
    unsaid = {*COLOURS, *SHAPES} - set(said)
    assert not unsaid & set(english.replace(",", "").split())
    assert not any((ZH_COLOURS | ZH_SHAPES)[word] in chinese for word in unsaid)


STAR = Thing("star", "red", "small")
FADE = Background("white", "black", downwards=True)


@pytest.mark.parametrize(
    ("scene", "english", "chinese"),
    [
        (Scene((STAR,), None, None), "a small red star", "一个小红色星星"),
        (Scene((Thing("star", "red", "large"),), None, None), "a large red star", "一个大红色星星"),
        (Scene((STAR,), "top left", None), "a small red star in the top left corner", "左上角有一个小红色星星"),
        (Scene((STAR,), "top", None), "a small red star at the top", "上方有一个小红色星星"),
        (Scene((STAR,), "right", None), "a small red star on the right", "右边有一个小红色星星"),
        (Scene((STAR,), "centre", None), "a small red star in the centre", "中间有一个小红色星星"),
        (Scene((STAR,), "bottom right", None), "a small red star in the bottom right corner", "右下角有一个小红色星星"),
        (
            Scene((STAR,), None, FADE),
            "on a background fading top to bottom from white to black",
            "从上到下由白色渐变到黑色的背景",
        ),
        (
            Scene((STAR,), None, replace(FADE, downwards=False)),
            "on a background fading left to right from white to black",
            "从左到右由白色渐变到黑色的背景",
        ),
        (
            replace(PAIR, place="above", background=None),
            "a red circle above a blue square",
            "一个红色圆形在一个蓝色正方形的上方",
        ),
        (
            replace(PAIR, place="above", background=None),
            "a blue square below a red circle",
            "一个蓝色正方形在一个红色圆形的下方",
        ),
        (
            replace(PAIR, background=None),
            "a blue square to the right of a red circle",
            "一个蓝色正方形的左边有一个红色圆形",
        ),
        (replace(PAIR, place=None), "a red circle and a blue square", "一个红色圆形和一个蓝色正方形"),
    ],
)
def test_captions_say_sizes_places_and_directions(scene: Scene, english: str, chinese: str) -> None:
    assert any(english in caption(scene, "en", Random(seed)) for seed in range(20))
    assert any(chinese in caption(scene, "zh", Random(seed)) for seed in range(20))


def test_pair_is_captioned_from_either_side() -> None:
    wordings = {caption(PAIR, "en", Random(seed)) for seed in range(50)}
    assert "a red circle to the left of a blue square on a yellow background" in wordings
    assert "on a yellow background, a blue square to the right of a red circle" in wordings
    chinese = {caption(PAIR, "zh", Random(seed)) for seed in range(80)}
    assert "黄色背景上，一个红色圆形在一个蓝色正方形的左边" in chinese
    assert "一个蓝色正方形在一个红色圆形的右边,黄色背景" in chinese


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@settings(max_examples=300)
@given(seeds)
def test_every_caption_fits_into_one_block_of_32_tokens(tokenizer: Tokenizer, seed: int) -> None:
    """The transformer pads captions to multiples of 32; training knows one block only."""
    rng = Random(seed)
    text = caption(random_scene(rng), rng.choice(("en", "zh")), rng)
    rendered = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer.encode(rendered).ids) <= 32


def test_each_word_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a red circle on a blue background").tokens == [
        *("a", "Ġred", "Ġcircle", "Ġon", "Ġa", "Ġblue", "Ġbackground"),
    ]
    assert len(tokenizer.encode("红色圆形,蓝色背景").ids) == 5
