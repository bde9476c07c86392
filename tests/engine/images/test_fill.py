"""Pixels for the masked part of an image."""

import numpy as np
from PIL import Image

from engine.images.fill import fill_from_surroundings


def test_masked_part_gets_the_colours_around_it_and_the_rest_stays() -> None:
    image = Image.new("RGB", (100, 70), (200, 0, 0))
    image.paste((0, 0, 200), (50, 0, 100, 70))
    image.paste((0, 255, 0), (30, 20, 71, 50))
    mask = Image.new("L", image.size)
    mask.paste(255, (30, 20, 71, 50))
    found, kept = np.asarray(fill_from_surroundings(image, mask)), np.asarray(mask) == 0
    assert (found[kept] == np.asarray(image)[kept]).all()
    assert found[~kept, 1].max() == 0  # nothing of the old green
    row = found[35, 30:71].astype(int)
    assert row[0, 0] > 150 and row[-1, 2] > 150
    assert abs(np.diff(row, axis=0)).max() < 30  # smooth


def test_image_that_is_masked_as_a_whole_stays_as_it_is() -> None:
    image = Image.new("RGB", (16, 16), (1, 2, 3))
    assert fill_from_surroundings(image, Image.new("L", image.size, 255)) is image
