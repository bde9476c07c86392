"""Requests checked against plans."""

import pytest
from fakes.manifest import MANIFEST
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.request import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, ImageRequest


def test_omitted_fields_use_the_models_defaults() -> None:
    request = ImageRequest("a")
    assert request.size(MANIFEST) == (256, 256)
    assert (request.steps(MANIFEST), request.forwards(MANIFEST)) == (8, 8)
    assert ImageRequest("a", width=64).size(MANIFEST) == (64, 256)
    assert ImageRequest("a", guidance_scale=0.5, num_inference_steps=3).forwards(MANIFEST) == 6


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
    [("num_inference_steps", 1, MAX_STEPS), ("seed", 0, MAX_SEED), ("guidance_scale", 0, MAX_GUIDANCE)],
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
