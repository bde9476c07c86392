"""Requests checked against plans."""

from dataclasses import replace

import pytest
from fakes.manifest import MANIFEST
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.request import MAX_GUIDANCE, MAX_NORMALIZATION, MAX_SEED, MAX_STEPS, Edit, ImageRequest

BASE = replace(MANIFEST, model=replace(MANIFEST.model, default_steps=50, default_guidance=4.0))


def test_omitted_fields_use_the_models_defaults() -> None:
    request = ImageRequest("a")
    assert request.size(MANIFEST) == (256, 256)
    assert (request.steps(MANIFEST), request.forwards(MANIFEST)) == (8, 8)
    assert ImageRequest("a", width=64).size(MANIFEST) == (64, 256)
    assert ImageRequest("a", guidance_scale=0.5, num_inference_steps=3).forwards(MANIFEST) == 6
    assert (ImageRequest("a").guidance(BASE), ImageRequest("a").forwards(BASE)) == (4.0, 100)
    assert ImageRequest("a", guidance_scale=0).forwards(BASE) == 50


@pytest.mark.parametrize(("truncation", "guided"), [(1.0, 4), (0.5, 4), (0.49, 3), (0.2, 2), (0.05, 1), (0.0, 1)])
def test_steps_beyond_the_truncation_take_one_pass(truncation: float, guided: int) -> None:
    """The noise levels of four steps at shift 3 are 1, 0.9, 0.75 and 0.5; the first step begins at no progress."""
    request = ImageRequest("a", num_inference_steps=4, guidance_scale=2.0, cfg_truncation=truncation)
    assert request.guided_steps(MANIFEST) == guided
    assert [request.forwards(MANIFEST, done) for done in range(5)] == [
        4 - done + max(guided - done, 0) for done in range(5)
    ]
    assert ImageRequest("a", num_inference_steps=4, cfg_truncation=truncation).forwards(MANIFEST) == 4


def test_init_image_leaves_the_guided_steps_of_the_rest_of_the_schedule() -> None:
    """At strength 0.5 the last two of four steps are left, which begin at a progress of 0.25 and 0.5."""
    edit = Edit(0.5, "digest")
    for truncation, guided in ((1.0, 2), (0.3, 1), (0.2, 0)):
        request = ImageRequest("a", num_inference_steps=4, guidance_scale=2.0, cfg_truncation=truncation, edit=edit)
        assert (request.guided_steps(MANIFEST), request.forwards(MANIFEST)) == (guided, 2 + guided)


def test_fields_of_guidance_have_no_effect_without_it() -> None:
    given = {"negative_prompt": "b", "cfg_normalization": 1.0, "cfg_truncation": 0.5}
    for name, value in given.items():
        assert ImageRequest("a", **{name: value}).without_effect(MANIFEST) == (name,)
    assert ImageRequest("a", **given).without_effect(MANIFEST) == tuple(given)
    assert ImageRequest("a", **given, guidance_scale=0.1).without_effect(MANIFEST) == ()
    assert ImageRequest("a", **given).without_effect(BASE) == ()
    assert ImageRequest("a", **given, guidance_scale=0).without_effect(BASE) == tuple(given)
    assert ImageRequest("a").without_effect(MANIFEST) == ()


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\u3000\xa0"])
def test_blank_prompt_is_refused_and_blank_negative_prompt_is_not(prompt: str) -> None:
    with pytest.raises(InvalidRequest, match="must not be empty") as refusal:
        ImageRequest(prompt).check(MANIFEST)
    assert refusal.value.param == "prompt"
    ImageRequest("a", negative_prompt=prompt, guidance_scale=1.0).check(MANIFEST)


@pytest.mark.parametrize("text", ["\ud800", "a red \udfff circle", "\ud83c\udfa8"])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_invalid_unicode_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogates not allowed") as refusal:
        ImageRequest(**{"prompt": "a", name: text}).check(MANIFEST)
    assert refusal.value.param == name


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("num_inference_steps", 1, MAX_STEPS),
        ("seed", 0, MAX_SEED),
        ("guidance_scale", 0, MAX_GUIDANCE),
        ("cfg_normalization", 0, MAX_NORMALIZATION),
        ("cfg_truncation", 0, 1),
    ],
)
@given(value=st.integers(-(10**12), 10**12) | st.floats())
def test_numbers_out_of_range_are_refused(name: str, low: float, high: float, value: float) -> None:
    request = ImageRequest("a", **{name: value})
    if low <= value <= high:
        request.check(MANIFEST)
    else:
        with pytest.raises(InvalidRequest, match=f"{name} must be between {low} and {high}, got") as refusal:
            request.check(MANIFEST)
        assert refusal.value.param == name
