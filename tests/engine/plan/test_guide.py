"""Guides of checkpoints: what z-image-nano's says, and files that are missing or damaged."""

from pathlib import Path

import pytest

from engine.errors import PlanCorrupt
from engine.plan.directory import read
from engine.plan.guide import GUIDE_FILE, Guide
from engine.size import Size
from nano.layout import Z_IMAGE_NANO


def test_nano_says_what_it_draws_and_at_which_sizes() -> None:
    guide = Guide.read(Z_IMAGE_NANO)
    assert "coloured shapes at 128 to 256 pixels" in guide.about
    assert guide.examples and all(guide.covers(Size.parse(text)) for text in guide.sizes)
    assert guide.covers(Size(256, 128)) and guide.covers(Size(144, 240))
    assert not guide.covers(Size(512, 256)) and not guide.covers(Size(256, 112))


def test_folder_without_a_guide_has_an_empty_one_that_covers_every_size(tmp_path: Path) -> None:
    assert Guide.read(tmp_path) == Guide() and Guide().covers(Size(2048, 64))


@pytest.mark.parametrize("text", ["", "[]", '{"about": 1}', '{"examples": "a cat"}'])
def test_damaged_guide_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / GUIDE_FILE).write_text(text)
    with pytest.raises(PlanCorrupt, match=r"guide\.json is damaged"):
        Guide.read(tmp_path)


def test_plans_have_the_guide_of_their_checkpoint(plan_directory: Path) -> None:
    assert (plan_directory / GUIDE_FILE).read_bytes() == (Z_IMAGE_NANO / GUIDE_FILE).read_bytes()
    assert GUIDE_FILE in [file.path for file in read(plan_directory, verify=False).files]
