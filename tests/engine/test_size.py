"""Sizes of images that come in, fitted to the plans."""

from dataclasses import replace
from fractions import Fraction

import pytest
from fakes.manifest import MANIFEST
from hypothesis import example, given
from hypothesis import strategies as st

from engine.size import Size, SizeLimits, SizeRange

SQUARES = SizeRange(64, 512, 64, 512)
BANNERS = SizeRange(768, 1024, 64, 128)
LIMITS = SizeLimits(16, (SQUARES, BANNERS), Size(256, 256))

sides = st.integers(1, 40_000_000)


def test_limits_of_a_manifest_are_those_of_its_profiles() -> None:
    limits = MANIFEST.size_limits
    assert limits == SizeLimits(16, (SizeRange(64, 256, 64, 256), SQUARES), Size(256, 256))
    for size in (Size(64, 64), Size(512, 512), Size(272, 256), Size(48, 64), Size(528, 64), Size(100, 64)):
        try:
            MANIFEST.profile_for(size)
        except Exception:  # noqa: BLE001 (any refusal)
            assert size not in limits
        else:
            assert size in limits


@given(st.integers(64, 527), st.integers(64, 527))
def test_size_that_the_plans_cover_is_rounded_down_as_in_diffusers(width: int, height: int) -> None:
    assert LIMITS.fitted(Size(width, height)) == (width - width % 16, height - height % 16)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((1, 1), (64, 64)),
        ((30, 60), (64, 128)),
        ((4000, 3000), (512, 384)),
        ((3000, 4000), (384, 512)),
        ((4000, 400), (1024, 96)),  # the banners keep its aspect ratio
        ((900, 100), (896, 96)),
        ((1, 10_000), (64, 512)),  # no range does
        ((40_000, 1), (1024, 64)),
        ((528, 500), (512, 480)),
    ],
)
def test_other_sizes_are_scaled(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert LIMITS.fitted(Size(*size)) == fitted


@given(sides, sides)
@example(1, 40_000_000)
@example(513, 63)
def test_fitted_size_is_one_of_the_plans_and_keeps_the_aspect_ratio_if_any_size_does(width: int, height: int) -> None:
    fitted = LIMITS.fitted(Size(width, height))
    assert fitted in LIMITS
    ratio = Fraction(width, height)
    if Fraction(1, 8) <= ratio <= 8 or Fraction(6) <= ratio <= 16:
        # each side is less than one multiple away from a size of exactly this ratio
        low, high = Fraction(fitted.width - 16, fitted.height + 16), Fraction(fitted.width + 16, fitted.height - 16)
        assert low <= ratio <= high


def test_side_that_is_missing_follows_from_the_aspect_ratio() -> None:
    image = Size(300, 200)
    assert LIMITS.completed(None, None, image) == (288, 192)
    assert LIMITS.completed(480, None, image) == (480, 320)
    assert LIMITS.completed(None, 128, image) == (192, 128)
    assert LIMITS.completed(96, None, image) == (96, 64)
    assert LIMITS.completed(64, None, Size(10, 1000)) == (64, 512)
    assert LIMITS.completed(1024, None, image) == (1024, 128)
    assert LIMITS.completed(None, 512, Size(5000, 100)) == (512, 512)


@given(st.none() | st.integers(-5, 5000), st.none() | st.integers(-5, 5000), sides, sides)
def test_given_sides_are_kept_whatever_they_are(width: int | None, height: int | None, w: int, h: int) -> None:
    completed = LIMITS.completed(width, height, Size(w, h))
    assert width in (None, completed.width) and height in (None, completed.height)
    multiple = replace(LIMITS, multiple=16)
    if width is None and height is None:
        assert completed in multiple
