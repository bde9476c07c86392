"""Shapes of probes: few and small, and one for every profile that serves anything."""

from dataclasses import replace

import pytest
from fakes.manifest import BANNER, LARGE, MANIFEST, USUAL
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan.manifest import Manifest, Model, Profile, padded
from engine.size import Size
from export.compile.probe_inputs import probe_shapes
from export.compile.profiles import default_profiles, parse_profile


def shapes_of(*profiles: Profile) -> dict[str, tuple[int, int, int, int]]:
    found = probe_shapes(replace(MANIFEST, profiles=profiles))
    assert len({shape.name for shape in found}) == len(found)
    return {shape.name: (shape.size.width, shape.size.height, shape.batch, shape.tokens) for shape in found}


def test_default_profiles_have_small_probes_and_one_for_the_larger_profile() -> None:
    assert shapes_of(*default_profiles(1024, MANIFEST.model)) == {
        "smallest": (256, 256, 1, 20),
        "odd size": (272, 272, 1, 45),
        "batch of 2": (256, 256, 2, 20),
        "long prompt": (256, 256, 1, 512),
        "worst rows": (256, 256, 1, 20),
        "profile large": (256, 1040, 1, 20),
    }


def test_profile_of_one_size_has_no_other_size() -> None:
    assert shapes_of(parse_profile("256x128", MANIFEST.model)) == {
        "smallest": (256, 128, 1, 20),
        "long prompt": (256, 128, 1, 512),
        "worst rows": (256, 128, 1, 20),
    }


def test_profile_that_a_tighter_one_covers_has_no_probe() -> None:
    inner = replace(USUAL, name="inner", height=replace(USUAL.height, max=128), width=replace(USUAL.width, max=128))
    assert "profile usual" in shapes_of(USUAL, inner)
    assert shapes_of(USUAL, replace(USUAL, name="twin")) == shapes_of(USUAL)


def profiles(model: Model) -> st.SearchStrategy[list[Profile]]:
    side = st.integers(4, 24).map(lambda tokens: 16 * tokens)
    size = st.tuples(side, side).map(lambda pair: f"{pair[0]}x{pair[1]}")
    text = st.tuples(st.lists(size, min_size=1, max_size=3), st.integers(1, 4)).map(
        lambda made: f"{','.join(made[0])}:{made[1]}"
    )
    return st.lists(
        text.map(lambda made: parse_profile(made, model)), min_size=1, max_size=3, unique_by=lambda p: p.name
    )


@settings(deadline=None, max_examples=60)
@given(profiles(MANIFEST.model))
def test_every_probe_is_served_and_every_serving_profile_has_one(found: list[Profile]) -> None:
    plans = replace(MANIFEST, profiles=tuple(found))
    serving = set()
    for shape in probe_shapes(plans):
        profile = plans.profile_for(shape.size, shape.batch)
        assert padded(shape.tokens) in profile.prompt_length
        serving.add(profile.name)
    assert {corner(plans, profile) for profile in found} <= serving


def corner(plans: Manifest, profile: Profile) -> str:
    """The profile that serves the largest shape of a profile."""
    return plans.profile_for(Size(profile.width.max, profile.height.max), profile.batch.max).name


@pytest.mark.parametrize("given", [(USUAL, LARGE, BANNER), (BANNER,), (LARGE,)])
def test_probes_stay_small(given: tuple[Profile, ...]) -> None:
    largest = max(profile.area for profile in given)
    assert all(width * height <= max(largest, 64 * 272) for width, height, _, _ in shapes_of(*given).values())
