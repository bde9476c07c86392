"""Texts of PNG files, as PIL writes them and as others may."""

import io
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.api.dialects.png_text import MAX_TEXT, SIGNATURE, texts


def png(info: PngInfo) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def test_texts_of_all_kinds_are_read_as_pil_writes_them() -> None:
    info = PngInfo()
    info.add_text("plain", "ü\n1")
    info.add_text("packed", "ü" * 1000, zip=True)
    info.add_itxt("unicode", "一只猫", lang="zh", tkey="x")
    info.add_itxt("packed unicode", "一只猫" * 100, zip=True)
    expected = {"plain": "ü\n1", "packed": "ü" * 1000, "unicode": "一只猫", "packed unicode": "一只猫" * 100}
    assert texts(png(info)) == expected
    assert texts(png(info)[:-30]) == expected
    assert texts(png(PngInfo())) == {}


@pytest.mark.parametrize("kind, head", [(b"zTXt", b"\0\0"), (b"iTXt", b"\0\1\0\0\0")])
def test_compressed_texts_are_inflated_up_to_a_limit_of_all(kind: bytes, head: bytes) -> None:
    half = head + zlib.compress(b"a" * (MAX_TEXT // 2 - 1))
    two = SIGNATURE + chunk(kind, b"1" + half) + chunk(kind, b"2" + half)
    assert [len(text) for text in texts(two).values()] == [MAX_TEXT // 2 - 1] * 2
    with pytest.raises(ValueError, match="larger than"):
        texts(two + chunk(kind, b"3" + head + zlib.compress(b"a")))
    bomb = head + zlib.compress(b"a" * 10_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="larger than"):
        texts(SIGNATURE + b"".join(chunk(kind, b"%d" % number + bomb) for number in range(20)))
    assert tracemalloc.get_traced_memory()[1] < 8 * MAX_TEXT
    tracemalloc.stop()


def test_texts_after_the_pixels_and_cut_chunks_are_not_read() -> None:
    late = SIGNATURE + chunk(b"IDAT", b"") + chunk(b"tEXt", b"name\0text")
    cut = SIGNATURE + chunk(b"tEXt", b"name\0text")[:-6]
    assert texts(late) == texts(cut) == texts(SIGNATURE) == {}


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"GIF89a", SIGNATURE + chunk(b"zTXt", b"name\0\0not zlib")])
def test_damaged_file_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        texts(data)


@given(st.lists(st.tuples(st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"IHDR"]), st.binary(max_size=40))))
def test_arbitrary_chunks_are_texts_or_a_value_error(chunks: list[tuple[bytes, bytes]]) -> None:
    try:
        found = texts(SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks))
    except ValueError:
        return
    assert all(isinstance(text, str) for pair in found.items() for text in pair)
