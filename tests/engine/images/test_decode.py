"""Untrusted files become pixels, within bounds, or are refused by name."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from engine.errors import InvalidRequest
from engine.images.decode import decode
from engine.images.header import DecodeLimits, Header, read_header
from engine.size import Size

KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).convert(mode)


def png(width: int, height: int, depth: int, colours: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)),
        *extra,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (255, 256), (40, 30)])
def test_header_states_the_format_and_size_that_pillow_reads(kind: str, size: tuple[int, int]) -> None:
    for options in ({}, {"lossless": True}, {"progressive": True}, {"exif": Image.Exif().tobytes() + bytes(40_000)}):
        data = file(picture(*size), kind, **options)
        assert read_header(data) == Header(kind, Size(*size))  # type: ignore[arg-type]


def test_header_of_webp_with_alpha_and_of_old_bmp() -> None:
    assert read_header(file(picture(300, 2, "RGBA"), "WEBP")) == ("WEBP", (300, 2))
    assert read_header(b"BM" + bytes(12) + struct.pack("<IHH", 12, 7, 9)) == ("BMP", (7, 9))
    assert read_header(b"BM" + bytes(12) + struct.pack("<Iii", 40, 7, -9)) == ("BMP", (7, 9))


def test_jpeg_with_millions_of_markers_is_not_read_to_its_end() -> None:
    assert read_header(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 5_000_000) == ("JPEG", None)
    assert read_header(b"\xff\xd8" + b"\xff" * 5_000_000) == ("JPEG", None)


def test_junk_between_the_segments_of_a_jpeg_is_skipped() -> None:
    """Cameras and old programs write it; Pillow reads such files."""
    data = file(picture(), "JPEG")
    for junk in (b"\0", b"\0" * 9, b"\xff\x00ab", b"\xff"):
        assert read_header(data[:2] + b"\xff\xfe\x00\x04ab" + junk + data[2:]) == ("JPEG", (40, 30))


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF....WEBPVP8", b"GIF89a", b"BM", b""]), st.binary())
def test_header_of_garbage_raises_nothing(start: bytes, rest: bytes) -> None:
    header = read_header(start + rest)
    assert header is None or header.size is None or (header.size.width > 0 and header.size.height > 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_lossless_file_gives_its_pixels(kind: str) -> None:
    image, notes = decode(file(picture(), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (image.mode, notes) == ("RGB", ())
    assert np.array_equal(np.asarray(image), np.asarray(picture()))


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("1", "PNG", "1"), ("L", "PNG", "L"), ("P", "PNG", "P"), ("P", "GIF", "P"), ("RGBA", "PNG", "RGBA"),
        ("LA", "PNG", "RGBA"), ("L", "JPEG", "L"), ("CMYK", "JPEG", "RGB"), ("RGBA", "WEBP", "RGB"), ("P", "BMP", "P"),
    ],
)  # fmt: skip
def test_modes_are_kept_as_far_as_masks_need_them(mode: str, kind: str, expected: str) -> None:
    data = file(picture(mode=mode), kind)
    for is_mask in (False, True):
        image, _ = decode(data, is_mask=is_mask)
        assert (image.mode, image.size) == (expected, (40, 30))
    with Image.open(io.BytesIO(data)) as pillow:
        assert np.array_equal(np.asarray(image.convert("RGBA")), np.asarray(pillow.convert("RGBA")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_image_is_turned_upright_as_by_pillow(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(picture(), kind, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as pillow:
        expected = np.asarray(ImageOps.exif_transpose(pillow))
    assert np.array_equal(np.asarray(decode(data).image), expected)
    assert np.array_equal(np.asarray(decode(data, is_mask=True).image), expected)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x01" * 99, b"x" * 60_000],
)
def test_damaged_exif_data_are_ignored(exif: bytes) -> None:
    assert decode(file(picture(), "JPEG", exif=exif)).image.size == (40, 30)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientation_that_does_not_exist_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(np.asarray(decode(file(picture(), exif=exif.tobytes())).image), np.asarray(picture()))


def test_sixteen_bits_are_reduced_to_eight() -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    image, _ = decode(file(Image.fromarray(values)))
    assert (image.mode, image.size) == ("L", (64, 64))
    assert np.array_equal(np.asarray(image), values >> 8)
    rows = b"".join(b"\0" + values[:, :3].astype(">u2")[y].tobytes() for y in range(64))
    rgb, _ = decode(png(1, 64, 16, 2, rows))
    assert np.array_equal(np.asarray(rgb)[:, 0], values[:, :3] >> 8)


def test_png_whose_palette_is_missing_is_refused() -> None:
    """Pillow's assertion fails there."""
    with pytest.raises(InvalidRequest, match="damaged"):
        decode(png(2, 1, 8, 3, b"\0\1\2"))


def test_colour_that_means_transparent_becomes_alpha() -> None:
    rows = b"\0" + bytes([1, 2, 3, 9, 9, 9])
    image, _ = decode(png(2, 1, 8, 2, rows, (b"tRNS", struct.pack(">HHH", 9, 9, 9))))
    assert np.asarray(image).tolist() == [[[1, 2, 3, 255], [9, 9, 9, 0]]]
    palette, _ = decode(file(picture(mode="RGBA").quantize(8)))
    assert palette.mode == "RGBA"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_used_and_said(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")]
    image, notes = decode(file(frames[0], kind, save_all=True, append_images=frames[1:]), "init_image")
    assert notes == ("init_image is animated; only its first frame is used",)
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - (255, 0, 0)).max() <= 2


def test_first_picture_of_a_camera_with_previews_is_used_and_needs_no_note() -> None:
    data = file(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    image, notes = decode(data)
    assert (image.size, notes) == ((40, 30), ())


def test_animation_whose_later_frames_are_damaged_gives_its_first() -> None:
    frames = [picture(), picture(mode="L").convert("RGB")]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image, notes = decode(data[:-400])
    assert image.size == (40, 30) and notes


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_the_image_are_ignored(kind: str) -> None:
    data = file(picture(), kind)
    plain, _ = decode(data)
    for extra in (b"PK\x03\x04" + bytes(50), b"<script>", file(picture(9, 9))):
        assert np.array_equal(np.asarray(decode(data + extra).image), np.asarray(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_file_is_refused(kind: str) -> None:
    data = file(picture(200, 150), kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(InvalidRequest, match="mask is damaged") as refusal:
            decode(data[: int(share * len(data))], "mask")
        assert refusal.value.param == "mask"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image is empty"),
        (b"%PDF-1.7", "got a PDF"),
        (b"PK\x03\x04aaaa", "got a ZIP archive"),
        (b"  <?xml version='1.0'?><svg/>", "got SVG, HTML or XML"),
        (b"%!PS-Adobe-3.0 EPSF", "got PostScript"),
        (b"II*\0aaaa", "got a TIFF"),
        (b"\0\0\0\x1cftypavif", "got AVIF, HEIC or a video"),
        (b"\x7fELF\x02\x01\x01\0\0", "got a file that begins with the bytes 7f 45 4c 46 02 01 01 00"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "its PNG header states no size"),
        (png(0, 5, 8, 2, b""), "its PNG header states no size"),
        (png(40_000, 1001, 8, 2, b""), r"at most 40 million pixels, got 40000x1001 \(40\.0 million\)"),
        (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "at most 40 million pixels"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(50), "at most 40 million pixels"),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6, "at most 40 million pixels"),
        (bytes(3), "got a file that begins with the bytes 00 00 00"),
    ],
)  # fmt: skip
def test_what_is_no_image_within_bounds_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        decode(data)
    assert refusal.value.param == "image"


def test_bytes_and_pixels_are_bounded() -> None:
    data = file(picture())
    decode(data, limits=DecodeLimits(len(data), 1200))
    with pytest.raises(InvalidRequest, match=r"at most .* MB"):
        decode(data, limits=DecodeLimits(len(data) - 1))
    with pytest.raises(InvalidRequest, match="million pixels, got 40x30"):
        decode(data, limits=DecodeLimits(max_pixels=1199))


@pytest.mark.parametrize(
    ("side", "message"), [(9000, "at most 40 million pixels, got 9000x9000"), (60_000, "at most 40")]
)
def test_gif_whose_frame_is_larger_than_its_header_says_is_refused(side: int, message: str) -> None:
    data = bytearray(file(picture(mode="P"), "GIF"))
    frame = data.index(b"\x2c\0\0\0\0")
    data[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    assert read_header(bytes(data)) == ("GIF", (40, 30))
    with pytest.raises(InvalidRequest, match=message):
        decode(bytes(data))


def test_text_bombs_in_png_are_refused() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    row = b"\0" + bytes(3)
    for extra in ((b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)):
        with pytest.raises(InvalidRequest, match="damaged"):
            decode(png(1, 1, 8, 2, row, extra))


def profiled(colour: tuple[int, int, int], kind: str) -> bytes:
    """A file in a colour space whose red is another one than sRGB's: its columns are swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = profile[blue : blue + 4], profile[red : red + 4]
    renamed = bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return file(
        Image.new("RGB", (8, 8), colour), kind, icc_profile=renamed, **({"lossless": True} if kind == "WEBP" else {})
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_of_a_profile_are_converted_to_srgb(kind: str) -> None:
    image, notes = decode(profiled((250, 0, 10), kind))
    assert notes == ()
    assert np.abs(np.asarray(image)[0, 0].astype(int) - (10, 0, 250)).max() <= 4
    mask, _ = decode(profiled((250, 0, 10), kind), is_mask=True)
    assert np.abs(np.asarray(mask)[0, 0].astype(int) - (250, 0, 10)).max() <= 4


def test_srgb_profile_changes_nothing_and_a_damaged_one_is_ignored_and_said() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image, notes = decode(file(picture(), icc_profile=srgb))
    assert np.array_equal(np.asarray(image), np.asarray(picture())) and notes == ()
    for profile, kind in ((b"x" * 200, "PNG"), (srgb[:300], "WEBP"), (srgb + bytes(5_000_000), "JPEG")):
        image, notes = decode(file(picture(), kind, icc_profile=profile))
        assert image.size == (40, 30)
        assert notes == ("the colour profile of image cannot be used; its colours are taken as sRGB",)


def test_cmyk_without_a_profile_is_converted_and_said() -> None:
    image, notes = decode(file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.asarray(image)[0, 0].astype(int) - (255, 0, 0)).max() <= 3
    assert notes == ("image is CMYK without a colour profile; its colours are approximate",)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_flipped_bytes_are_decoded_or_refused(kind: str, data: st.DataObject) -> None:
    original = bytearray(file(picture(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        image, _ = decode(bytes(original), limits=DecodeLimits(max_pixels=1_000_000))
    except InvalidRequest as refusal:
        assert refusal.param == "image"
    else:
        assert image.mode in ("1", "L", "P", "RGB", "RGBA")
        image.convert("RGB").load()
