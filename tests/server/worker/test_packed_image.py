"""Init images as bytes: what comes out is what went in, or an error."""

from contextlib import suppress

import pytest
from fakes.jobs import init_image
from hypothesis import given
from hypothesis import strategies as st

from engine.init_image import Box, InitImage, Paste
from engine.size import Size
from server.worker import packed_image
from server.worker.packed_image import pack, unpack

ORIGINAL = Size(5, 3)
PASTE = Paste(ORIGINAL, bytes(range(45)), Box(1, 0, 3, 2), b"\0\x80\xff\1")
PASTED = InitImage(Size(16, 32), bytes(16 * 32 * 3), b"\xff" * 16 * 32, PASTE)
WHOLE = pack(PASTED).data


@pytest.mark.parametrize("image", [init_image(), init_image(mask=True), PASTED])
def test_packed_image_is_unpacked_unchanged(image: InitImage) -> None:
    packed = pack(image)
    assert unpack(packed.data) == image
    assert unpack(packed.data).digest() == image.digest()
    assert packed.unpacked_bytes == image.nbytes


def test_flat_image_takes_few_bytes() -> None:
    assert len(pack(InitImage(Size(512, 512), bytes(512 * 512 * 3))).data) < 5000


@given(st.one_of(st.binary(max_size=200), st.integers(0, len(WHOLE) - 1).map(lambda at: WHOLE[:at])))
def test_damaged_bytes_raise_an_error_by_name(data: bytes) -> None:
    with pytest.raises(ValueError, match="they are"):
        unpack(data)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_changed_byte_is_found_or_changes_nothing(at: int, bits: int) -> None:
    """zlib's checksum finds it."""
    damaged = WHOLE[:at] + bytes([WHOLE[at] ^ bits]) + WHOLE[at + 1 :]
    with suppress(ValueError):
        assert unpack(damaged) == PASTED


def test_bomb_is_not_unpacked_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_image, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="too many"):
        unpack(pack(init_image()).data)
