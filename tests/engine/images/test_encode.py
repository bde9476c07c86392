"""Image files: pixels and metadata are read back by other libraries."""

import io
import json
import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import ExifTags, Image

from benchmarks.harness.pixels import psnr
from engine.array import Array
from engine.errors import InvalidRequest
from engine.images.encode import NAMESPACE, encode
from engine.images.metadata import ImageMetadata, file_metadata
from engine.request import ImageFormat, ImageRequest
from engine.stages import StageTimes

FORMATS = [ImageFormat("png"), ImageFormat("jpeg"), ImageFormat("webp")]
PROMPT = '一个红色的圆, \N{ARTIST PALETTE} <b>&amp; "é"\nNegative prompt: none\n\n\x01end'
REQUEST = ImageRequest(PROMPT)
METADATA = ImageMetadata(
    7, 256, 192, 8, 8, 0.0, "0123456789ab", "fp16", "onnx", "Z-Image, Turbo", None, 12, StageTimes(denoiser=0.25)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


def smooth(height: int, width: int) -> Array:
    """Return an image that JPEG and WebP compress well."""
    y, x = np.mgrid[:height, :width]
    channels = [120 + 100 * np.sin(x / 17 + phase) * np.cos(y / 23 + phase) for phase in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def user_comment(data: bytes) -> str:
    """Read UserComment with the type that piexif requires."""
    exif = opened(data).getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    assert b"\x92\x86\x00\x07" in data, "UserComment must be of type UNDEFINED"
    return str(comment[8:], "utf-16-be")


def xmp_properties(data: bytes) -> dict[str, str]:
    root = ET.fromstring(opened(data).info["xmp"])
    return {tag.tag.split("}")[1]: tag.text or "" for tag in root.iter() if tag.tag.startswith(f"{{{NAMESPACE}}}")}


def pixels_of_any_shape() -> st.SearchStrategy[Array]:
    sides = st.integers(1, 70)
    return st.tuples(sides, sides).flatmap(lambda size: arrays(np.uint8, (*size, 3)))


def test_text_of_an_image_from_another_one_has_its_strength_and_digest() -> None:
    text = file_metadata(REQUEST, replace(METADATA, strength=0.6, init_image="c0ffee"))
    assert 'Model: "Z-Image, Turbo", Denoising strength: 0.6' in text["parameters"]
    facts = json.loads(text["zimage-trt"])
    assert (facts["strength"], facts["init_image"]) == (0.6, "c0ffee")
    plain = file_metadata(REQUEST, METADATA)
    assert "Denoising" not in plain["parameters"]
    assert json.loads(plain["zimage-trt"])["strength"] is None


@given(pixels_of_any_shape())
@settings(max_examples=100, deadline=None)
def test_png_keeps_every_bit(pixels: Array) -> None:
    image = opened(encode(pixels))
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("kind", ["noise", "black", "white", "smooth", "view"])
def test_png_keeps_every_bit_of_larger_images(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (320, 400, 3), dtype=np.uint8)
    pixels = {
        "noise": noise,
        "black": np.zeros_like(noise),
        "white": np.full_like(noise, 255),
        "smooth": smooth(320, 400),
        "view": noise[::-2, 3:, ::-1],  # neither contiguous nor forward
    }[kind]
    assert np.array_equal(np.asarray(opened(encode(pixels))), pixels)


def test_png_is_smaller_than_pillows() -> None:
    """Pillow at level 1 chooses a filter per row. Measured: 5 % smaller than Pillow's."""
    noise = np.random.default_rng(1).normal(0, 1, (256, 256, 3))
    pixels = np.rint(smooth(256, 256) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    assert len(encode(pixels)) < len(file.getvalue())


def test_png_chunks_are_in_the_order_of_the_format() -> None:
    """Pillow verifies the checksums, but not the order."""
    data = encode(smooth(5, 7), text={"a": "b", "c": "红"})
    kinds = re.findall(rb"IHDR|tEXt|iTXt|IDAT|IEND", data)
    assert kinds == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]
    opened(data)
    Image.open(io.BytesIO(data)).verify()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 48), (61, 67), (200, 120)])
@pytest.mark.parametrize("image_format", FORMATS[1:], ids=lambda image_format: image_format.kind)
def test_lossy_formats_are_close_to_the_pixels(image_format: ImageFormat, height: int, width: int) -> None:
    """35 dB are required; 40 and more were measured."""
    pixels = smooth(height, width)
    image = opened(encode(pixels, image_format))
    assert (image.format, image.size, image.mode) == (image_format.kind.upper(), (width, height), "RGB")
    assert psnr(np.asarray(image), pixels) > 35


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_higher_quality_is_larger_and_closer(kind: Any) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    files = [encode(pixels, ImageFormat(kind, quality)) for quality in (0, 50, 85, 100)]
    assert len({*map(len, files)}) == 4
    assert sorted(files, key=len) == files
    distances = [psnr(np.asarray(opened(file)), pixels) for file in files]
    assert sorted(distances) == distances


def test_jpeg_of_high_quality_keeps_colours_sharp() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255  # alternating red and blue columns
    sharp, soft = (encode(stripes, ImageFormat("jpeg", quality)) for quality in (90, 89))
    assert psnr(np.asarray(opened(sharp)), stripes) > psnr(np.asarray(opened(soft)), stripes) + 10


@pytest.mark.parametrize(
    ("kind", "media_type", "suffix"),
    [("png", "image/png", ".png"), ("jpeg", "image/jpeg", ".jpg"), ("webp", "image/webp", ".webp")],
)
def test_media_type_and_suffix_of_each_format(kind: Any, media_type: str, suffix: str) -> None:
    image_format = ImageFormat(kind)
    assert (image_format.media_type, image_format.suffix) == (media_type, suffix)
    assert Image.registered_extensions()[suffix] == kind.upper()


@pytest.mark.parametrize(("kind", "quality"), [("jpeg", -1), ("jpeg", 101), ("webp", 1000), ("png", 99), ("png", 101)])
def test_invalid_quality_is_refused(kind: Any, quality: int) -> None:
    with pytest.raises(InvalidRequest, match=f"got {quality}") as refused:
        ImageFormat(kind, quality)
    assert refused.value.param == "output_compression"


def test_no_text_gives_no_metadata() -> None:
    for image_format in FORMATS:
        info = opened(encode(smooth(16, 16), image_format)).info
        assert not {"exif", "xmp", "parameters", "zimage-trt"} & info.keys()


def test_metadata_of_png_is_read_back() -> None:
    text = file_metadata(REQUEST, METADATA)
    assert opened(encode(smooth(16, 16), text=text)).info == text


@pytest.mark.parametrize("image_format", FORMATS[1:], ids=lambda image_format: image_format.kind)
def test_metadata_of_lossy_formats_is_read_back(image_format: ImageFormat) -> None:
    text = file_metadata(REQUEST, METADATA)
    data = encode(smooth(16, 16), image_format, text)
    assert user_comment(data) == text["parameters"]
    assert xmp_properties(data) == {"zimage-trt": text["zimage-trt"]}


@given(TEXTS)
@settings(max_examples=50, deadline=None)
def test_any_text_is_read_back(value: str) -> None:
    pixels = np.zeros((1, 1, 3), np.uint8)
    assert opened(encode(pixels, text={"parameters": value})).info == {"parameters": value}
    assert user_comment(encode(pixels, ImageFormat("jpeg"), {"parameters": value})) == value


@pytest.mark.parametrize("image_format", FORMATS, ids=lambda image_format: image_format.kind)
def test_unencodable_characters_do_not_fail_an_image(image_format: ImageFormat) -> None:
    """Zeros, lone surrogates and control characters are dropped or replaced where a format cannot hold them."""
    text = {"parameters": "a\0\ud800b\x08", "other": "a\0\ud800b\x08\uffff"}
    opened(encode(smooth(8, 8), image_format, text))


def test_png_text_drops_zero_bytes() -> None:
    """The format forbids them, and readers in C would stop at one."""
    assert opened(encode(smooth(8, 8), text={"a": "b\0c", "d": "红\0e"})).info == {"a": "bc", "d": "红e"}


def test_text_too_large_for_jpeg_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    text = {"parameters": "x" * 32_738, "other": "y"}
    with caplog.at_level(logging.WARNING):
        fits = opened(encode(smooth(8, 8), ImageFormat("jpeg"), text | {"parameters": "x" * 32_737}))
        assert not caplog.records
        left_out = opened(encode(smooth(8, 8), ImageFormat("jpeg"), text))
    assert "exif" in fits.info
    assert "exif" not in left_out.info
    assert "xmp" in left_out.info
    assert "EXIF" in caplog.text
    with caplog.at_level(logging.WARNING):
        data = encode(smooth(8, 8), ImageFormat("jpeg"), {"parameters": "x", "other": "y" * 70_000})
    assert "xmp" not in opened(data).info
    assert user_comment(data) == "x"
    assert "XMP" in caplog.text


def test_long_prompt_fits_in_webp() -> None:
    data = encode(smooth(8, 8), ImageFormat("webp"), {"parameters": "红" * 70_000})
    assert user_comment(data) == "红" * 70_000


def web_ui_settings(infotext: str) -> Iterator[tuple[str, str]]:
    """Parse the last line as AUTOMATIC1111's web UI does: a comma ends a value, unless the value is quoted."""
    for name, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', infotext.splitlines()[-1]):
        yield name, json.loads(value) if value.startswith('"') else value


def test_infotext_parses_like_automatic1111s() -> None:
    metadata = replace(METADATA, model="Z-Image: a, b")
    infotext = file_metadata(ImageRequest("a cat\non a mat"), metadata)["parameters"]
    assert infotext.startswith("a cat\non a mat\nSteps: 8, ")
    assert dict(web_ui_settings(infotext)) == {
        "Steps": "8",
        "Sampler": "Euler",
        "CFG scale": "1",
        "Seed": "7",
        "Size": "256x192",
        "Model": "Z-Image: a, b",
    }


def test_infotext_has_a_line_for_the_negative_prompt() -> None:
    request = ImageRequest("a cat", negative_prompt="a dog", guidance_scale=3.5)
    metadata = replace(METADATA, width=64, height=64, model="m", guidance_scale=3.5)
    assert file_metadata(request, metadata)["parameters"] == (
        "a cat\nNegative prompt: a dog\nSteps: 8, Sampler: Euler, CFG scale: 4.5, Seed: 7, Size: 64x64, Model: m"
    )


def test_infotext_has_the_bounds_of_guidance_where_they_matter() -> None:
    bounds = {"cfg_normalization": 0.5, "cfg_truncation": 0.75}
    found = dict(web_ui_settings(file_metadata(REQUEST, replace(METADATA, guidance_scale=3, **bounds))["parameters"]))
    assert (found["CFG normalization"], found["CFG truncation"]) == ("0.5", "0.75")
    for metadata in (replace(METADATA, **bounds), replace(METADATA, guidance_scale=3)):
        text = file_metadata(REQUEST, metadata)
        assert "normalization" not in text["parameters"] and "truncation" not in text["parameters"]
        assert json.loads(text["zimage-trt"])["cfg_truncation"] == metadata.cfg_truncation


def test_file_metadata_names_the_lora() -> None:
    text = file_metadata(REQUEST, replace(METADATA, lora="outlines"))
    assert dict(web_ui_settings(text["parameters"]))["LoRA"] == "outlines"
    assert json.loads(text["zimage-trt"])["lora"] == "outlines"
    assert "LoRA strength" not in text["parameters"]
    weaker = file_metadata(REQUEST, replace(METADATA, lora="outlines", lora_strength=0.75))
    assert dict(web_ui_settings(weaker["parameters"]))["LoRA strength"] == "0.75"
    assert json.loads(weaker["zimage-trt"])["lora_strength"] == 0.75


def test_json_metadata_is_exact_and_ascii() -> None:
    text = file_metadata(REQUEST, METADATA)["zimage-trt"]
    assert text.isascii()
    found = json.loads(text)
    assert (found.pop("prompt"), found.pop("negative_prompt")) == (PROMPT, "")
    assert ImageMetadata(**found, seconds=METADATA.seconds) == METADATA
