"""Prepared images: arrays and digests."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.init_image import Box, InitImage, Paste
from engine.size import Size

SIZE = Size(32, 16)
PASTE = Paste(Size(4, 3), bytes(range(36)), Box(1, 1, 3, 2), b"\x00\xff")
IMAGE = InitImage(SIZE, bytes(i % 251 for i in range(32 * 16 * 3)), bytes(32 * 8) + b"\xff" * (32 * 8), PASTE)


def test_arrays_have_the_height_first() -> None:
    pixels = IMAGE.pixel_array()
    assert (pixels.shape, pixels.dtype, tuple(pixels[0, 1])) == ((16, 32, 3), np.uint8, (3, 4, 5))
    assert IMAGE.mask_array().shape == (16, 32)
    assert PASTE.pixel_array().shape == (3, 4, 3)
    assert PASTE.mask_array().tolist() == [[0, 255]]
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


def test_result_has_the_originals_size() -> None:
    assert IMAGE.result_size == (4, 3)
    assert replace(IMAGE, paste=None).result_size == SIZE
    assert IMAGE.nbytes == 32 * 16 * 4 + 36 + 2


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_mask_of_the_latents_equals_torchs_nearest(columns: int, rows: int, random) -> None:  # type: ignore[no-untyped-def]
    size = Size(16 * columns, 16 * rows)
    mask = np.frombuffer(random.randbytes(size.area), np.uint8).reshape(size.height, size.width) // 128 * 255
    image = InitImage(size, bytes(3 * size.area), mask.tobytes())
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(mask / 255)[None, None], size=(size.height // 8, size.width // 8), mode="nearest"
    )
    assert np.array_equal(image.latents_mask(8), expected[0, 0].numpy())
    assert image.latents_mask(8).dtype == np.float32


def test_digest_covers_all_that_decides_about_the_image() -> None:
    swapped = replace(IMAGE, size=Size(16, 32))
    others = [
        IMAGE,
        swapped,
        replace(IMAGE, pixels=IMAGE.pixels[:-1] + b"\x01"),
        replace(IMAGE, mask=None),
        replace(IMAGE, mask=b"\xff" * 512),
        replace(IMAGE, paste=None),
        replace(IMAGE, paste=replace(PASTE, box=Box(0, 1, 2, 2))),
        replace(IMAGE, paste=replace(PASTE, size=Size(3, 4))),
        replace(IMAGE, paste=replace(PASTE, mask=b"\x01\xff")),
        replace(IMAGE, paste=replace(PASTE, pixels=bytes(36))),
        # the same bytes, divided otherwise
        replace(IMAGE, pixels=IMAGE.pixels + IMAGE.mask[:8], mask=IMAGE.mask[8:]),
    ]
    assert len({each.digest() for each in others}) == len(others)
    assert replace(IMAGE, notes=("a note",)).digest() == IMAGE.digest()
    assert len(IMAGE.digest()) == 64


def test_known_digest_is_not_computed_again() -> None:
    known = replace(IMAGE, sha256="a" * 64)
    assert known.digest() == "a" * 64
    assert known == IMAGE
