"""Profiles: what `--profile` accepts, the defaults, and the bounds of the graphs' dimensions."""

import re
from dataclasses import replace

import pytest
from fakes.manifest import MANIFEST, PROMPT_LENGTH
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import BuildError
from engine.plan.manifest import Profile, Range, padded
from engine.plan.shapes import dimensions
from engine.size import Size
from export.compile.profiles import default_profiles, parse_profile

MODEL = MANIFEST.model


@pytest.mark.parametrize(
    ("text", "height", "width", "batch"),
    [
        ("1024", Range(1024, 1024, 1024), Range(1024, 1024, 1024), 1),
        ("512:8", Range(512, 512, 512), Range(512, 512, 512), 8),
        ("512,1024x1536:2", Range(512, 512, 1536), Range(512, 512, 1024), 2),
        ("1024,768x1344,1344x768:2", Range(768, 1024, 1344), Range(768, 1024, 1344), 2),
        ("64x8192", Range(8192, 8192, 8192), Range(64, 64, 64), 1),
        ("256,64:64", Range(64, 256, 256), Range(64, 256, 256), 64),
    ],
)
def test_profile_covers_the_box_around_its_sizes(text: str, height: Range, width: Range, batch: int) -> None:
    assert parse_profile(text, MODEL) == Profile(text, height, width, Range(1, 1, batch), PROMPT_LENGTH)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must read like"),
        ("big", "must read like"),
        ("512:", "must read like"),
        ("512,", "must read like"),
        ("512 ,1024", "must read like"),
        ("512x512x512", "must read like"),
        ("-512", "must read like"),
        ("512.0", "must read like"),
        ("512:2:2", "must read like"),
        ("512\n", "must read like"),
        ("٥١٢", "must read like"),
        ("9" * 5000, "must read like"),  # more digits than int() takes
        ("520", "got 520; sizes are multiples of 16 from 64 to 8192"),
        ("48", "got 48"),
        ("0", "got 0"),
        ("8208", "got 8208"),
        ("512x100", "got 100"),
        ("512:0", "the batch must be between 1 and 64, got 0"),
        ("512:65", "the batch must be between 1 and 64, got 65"),
    ],
)
def test_bad_profile_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(BuildError, match=re.escape(complaint)):
        parse_profile(text, MODEL)


sizes = st.integers(0, 600).map(lambda n: 16 * n) | st.integers(0, 9000)
size = sizes.map(str) | st.tuples(sizes, sizes).map(lambda wh: f"{wh[0]}x{wh[1]}")
well_formed = st.tuples(st.lists(size, min_size=1, max_size=4), st.integers(0, 70)).map(
    lambda parts: f"{','.join(parts[0])}:{parts[1]}"
)


@given(st.text(alphabet="0123456789x,:- ٣\n", max_size=12) | well_formed | st.text())
@example("99999")
def test_any_text_is_a_profile_or_a_build_error(text: str) -> None:
    try:
        profile = parse_profile(text, MODEL)
    except BuildError:
        return
    assert profile.name == text
    for bounds in (profile.height, profile.width):
        assert 64 <= bounds.min <= bounds.opt <= bounds.max <= 8192
        assert {bounds.min % 16, bounds.opt % 16, bounds.max % 16} == {0}
    assert (profile.batch.min, profile.batch.opt) == (1, 1) and 1 <= profile.batch.max <= 64
    assert profile.prompt_length == PROMPT_LENGTH


@given(st.lists(st.integers(4, 512), min_size=2, max_size=8).filter(lambda sides: len(sides) % 2 == 0))
def test_every_named_size_is_covered(sides: list[int]) -> None:
    images = list(zip(sides[::2], sides[1::2], strict=True))
    profile = parse_profile(",".join(f"{16 * width}x{16 * height}" for height, width in images), MODEL)
    assert all(profile.covers(Size(16 * width, 16 * height), 1) for height, width in images)
    assert (profile.height.opt, profile.width.opt) == (16 * images[0][0], 16 * images[0][1])


@pytest.mark.parametrize(
    ("sample_size", "usual", "large"),
    [
        (1024, Range(256, 1024, 1024), Range(256, 1536, 2048)),  # Z-Image-Turbo
        (256, Range(64, 256, 256), Range(64, 384, 512)),  # z-image-nano
    ],
)
def test_default_profiles_follow_the_sample_size(sample_size: int, usual: Range, large: Range) -> None:
    profiles = default_profiles(sample_size, MODEL)
    assert profiles == (
        Profile("usual", usual, usual, Range(1, 1, 4), PROMPT_LENGTH),
        Profile("large", large, large, Range(1, 1, 1), PROMPT_LENGTH),
    )


def test_prompt_length_follows_the_models_maximum() -> None:
    model = replace(MODEL, prompt=replace(MODEL.prompt, max_tokens=1000))
    assert parse_profile("512", model).prompt_length == Range(32, 64, 1024)


@given(st.lists(st.tuples(st.integers(4, 512), st.integers(4, 512)), min_size=1, max_size=4), st.integers(1, 64))
def test_dimensions_cover_every_size_of_the_profile(tokens: list[tuple[int, int]], batch: int) -> None:
    text = ",".join(f"{16 * columns}x{16 * rows}" for rows, columns in tokens)
    profile = parse_profile(f"{text}:{batch}", MODEL)
    bounds = dimensions("denoiser", profile, MODEL)
    assert (bounds["batch"], bounds["prompt_length"]) == (Range(1, 1, batch), PROMPT_LENGTH)
    assert (bounds["height"], bounds["width"]) == (profile.height, profile.width)
    assert dimensions("prompt_encoder", profile, MODEL) == bounds
    assert dimensions("vae_decoder", profile, MODEL) == bounds | {"batch": Range(1, 1, 1)}
    for which in ("min", "opt", "max"):
        height, width = getattr(bounds["latent_height"], which), getattr(bounds["latent_width"], which)
        assert (8 * height, 8 * width) == (getattr(profile.height, which), getattr(profile.width, which))
        image = padded((height // 2) * (width // 2))
        assert getattr(bounds["sequence"], which) == image + getattr(PROMPT_LENGTH, which)
    for rows, columns in tokens:
        for length in range(32, 513, 32):
            assert padded(rows * columns) + length in bounds["sequence"]
