"""Forms, piece by piece: whatever the pieces are, what comes out is the same; malformed and large ones are refused."""

import gc
import weakref
from contextlib import suppress

import pytest
from fakes.forms import BOUNDARY, form, malformed, part, pieces
from hypothesis import given
from hypothesis import strategies as st

from server.api.errors import ApiError
from server.api.multipart import MAX_PARTS, Form, FormLimits, FormReader, boundary_of

LIMITS = FormLimits(file=10_000, texts=1000)
WHOLE = form(("prompt", b"a cat", None), ("image", b"\x89PNG\r\n\x1a\n" * 9, "in.png"), ("seed", b"7", None))


def read(body: bytes, sizes: tuple[int, ...] = (65536,), limits: FormLimits = LIMITS) -> Form:
    reader = FormReader(BOUNDARY, limits, ("image", "mask"))
    for piece in pieces(body, sizes):
        reader.feed(piece)
    return reader.end()


def refused(body: bytes, **options: FormLimits) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        read(body, **options)
    return refusal.value


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_form_is_the_same_in_any_pieces(sizes: list[int]) -> None:
    assert read(WHOLE, tuple(sizes)) == Form(
        {"prompt": "a cat", "seed": "7"}, {"image": b"\x89PNG\r\n\x1a\n" * 9}, unused=()
    )


@given(st.binary(max_size=300).filter(lambda data: b"\r\n--" + BOUNDARY not in b"\r\n" + data))
def test_file_of_any_bytes_is_read_unchanged(content: bytes) -> None:
    assert read(form(("image", content, "x")), (7,)).files == {"image": content}


def test_further_files_of_a_field_are_named_and_not_kept() -> None:
    read_form = read(form(*[("image[]", bytes([number]), "x.png") for number in range(3)], ("mask", b"m", "m.png")))
    assert read_form.files == {"image": b"\0", "mask": b"m"}
    assert read_form.unused == ("image[1]", "image[2]")
    assert read(form(("image[0]", b"a", "x"), ("image[1]", b"b", "x"))).files == {"image": b"a"}


def test_empty_texts_and_inputs_without_a_file_are_absent() -> None:
    assert read(form(("seed", b"", None), ("mask", b"", ""), ("image", b"\xff", ""))) == Form({}, {"image": b"\xff"})
    assert read(form(("mask", b"", ""), ("mask", b"second", "m.png"))).files == {"mask": b"second"}
    assert read(form(("mask", b"", "empty.png"))).files == {"mask": b""}  # chosen, so it is an error of its own later


def test_file_may_come_as_text_or_without_a_name() -> None:
    url = "data:image/png;base64,AAAA"
    assert read(form(("image", url.encode(), None))) == Form({"image": url}, {})
    assert read(form(("image", b"\x89PNG", None))) == Form({}, {"image": b"\x89PNG"})


def test_text_after_the_end_is_ignored() -> None:
    assert read(WHOLE + b"epilogue" * 100, (64,)) == read(WHOLE)


@pytest.mark.parametrize(("name", "body"), list(malformed(WHOLE)))
def test_malformed_form_is_400(name: str, body: bytes) -> None:
    refusal = refused(body)
    assert (refusal.status, refusal.code) == (400, "invalid_multipart"), name
    assert len(str(refusal)) < 500


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (form(("image", bytes(10_001), "x")), "image"),
        (form(("image", b"x", "x"), ("image[]", bytes(10_001), "x")), "image"),
        (form(("prompt", b"a" * 1001, None)), None),
        (form(*[(f"n{n}", b"a" * 100, None) for n in range(11)]), None),
    ],
)
def test_file_and_texts_over_their_limits_are_413(body: bytes, param: str | None) -> None:
    refusal = refused(body)
    assert (refusal.status, refusal.param) == (413, param)


def test_too_large_file_is_refused_before_its_end() -> None:
    reader = FormReader(BOUNDARY, LIMITS, ("image",))
    reader.feed(part("image", b"", "x")[:-2])
    for _ in range(10):
        reader.feed(bytes(1000))
    with pytest.raises(ApiError, match="image has more than 10000 bytes"):
        reader.feed(bytes(1000))
    assert reader.size <= LIMITS.file


def test_number_of_parts_is_limited_whatever_they_hold() -> None:
    assert len(read(form(*[(f"n{n}", b"1", None) for n in range(MAX_PARTS)])).texts) == MAX_PARTS
    assert refused(form(*[(f"n{n}", b"1", None) for n in range(MAX_PARTS + 1)])).code == "invalid_multipart"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (form(("prompt", b"a", "prompt.txt")), "prompt", "unknown_parameter"),
        (form(("markup", b"a", "markup.png")), "markup", "unknown_parameter"),
        (form(("seed", b"1", None), ("seed", b"2", None)), "seed", "invalid_value"),
    ],
)
def test_field_of_the_wrong_kind_or_twice_is_400_by_name(body: bytes, param: str, code: str) -> None:
    refusal = refused(body)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("", 415),
        ("application/json", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ('multipart/form-data; boundary=""', 400),
        ("multipart/form-data; charset=utf-8", 400),
    ],
)
def test_content_type_must_be_a_form_with_a_boundary(content_type: str, status: int) -> None:
    with pytest.raises(ApiError) as refusal:
        boundary_of(content_type)
    assert refusal.value.status == status


def test_boundary_may_be_quoted_and_not_longer_than_allowed() -> None:
    assert boundary_of('Multipart/Form-Data; boundary="a b"') == b"a b"
    with pytest.raises(ApiError, match="Boundary length"):
        FormReader(b"x" * 300, LIMITS, ())


def test_reader_is_freed_with_its_files_without_the_garbage_collector() -> None:
    """Cycles would keep uploads in memory until the next full collection, which a busy server seldom makes."""
    gc.disable()
    try:
        for body in (WHOLE, WHOLE[:-20], b"--other"):
            reader = FormReader(BOUNDARY, LIMITS, ("image",))
            with suppress(ApiError):
                reader.feed(body)
                reader.end()
            left = weakref.ref(reader._parts)
            del reader
            assert left() is None
    finally:
        gc.enable()
