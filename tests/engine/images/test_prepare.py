"""Images and masks are prepared as by diffusers' pipelines, and cropped to the mask as by its image processor."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.array import Array
from engine.errors import InvalidRequest
from engine.images.mask_crop import covering, crop_region, paste_back, soft_mask
from engine.images.preparation import Preparation
from engine.images.prepare import prepare
from engine.init_image import Box, InitImage, Paste
from engine.size import Size, SizeLimits, SizeRange

LIMITS = SizeLimits(16, (SizeRange(64, 512, 64, 512),), Size(256, 256))
PLAIN = Preparation(LIMITS)
SIZES = [(64, 64), (100, 70), (65, 511), (500, 333), (79, 80)]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA"]

# as ZImageImg2ImgPipeline and ZImageInpaintPipeline make them
IMAGES = VaeImageProcessor(vae_scale_factor=16)
MASKS = VaeImageProcessor(
    vae_scale_factor=16, vae_latent_channels=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng((seed, width, height))
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def as_bytes(prepared: torch.Tensor) -> Array:
    """Return [height, width, 3] uint8 of what diffusers gives the VAE: [1, 3, height, width] from -1 to 1."""
    array: Array = ((prepared[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    return array


@pytest.mark.parametrize("mode", [*MODES, "CMYK", "YCbCr"])
@pytest.mark.parametrize("size", SIZES)
def test_image_of_any_mode_and_size_equals_diffusers(size: tuple[int, int], mode: str) -> None:
    image = picture(*size, mode)
    ours = prepare(image, None, PLAIN)
    assert np.array_equal(ours.pixel_array(), as_bytes(IMAGES.preprocess(image.convert("RGB"))))
    assert ours.mask is None and ours.paste is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask_size", [None, (64, 64), (130, 33)])
def test_mask_of_any_mode_and_size_equals_diffusers(
    size: tuple[int, int], mode: str, mask_size: tuple[int, int] | None
) -> None:
    mask = picture(*(mask_size or size), mode, seed=1)
    ours = prepare(picture(*size), mask, PLAIN)
    theirs = MASKS.preprocess(mask, height=ours.size.height, width=ours.size.width)[0, 0].numpy()
    assert 0 < theirs.mean() < 1
    assert np.array_equal(ours.mask_array(), 255 * theirs)


@pytest.mark.parametrize(("mode", "theirs"), [("crop", "crop"), ("stretch", "default")])
@pytest.mark.parametrize("wanted", [(64, 64), (512, 80), (80, 512), (256, 160)])
@pytest.mark.parametrize("size", SIZES)
def test_other_aspect_ratio_equals_diffusers_resize_mode(
    size: tuple[int, int], wanted: tuple[int, int], mode: str, theirs: str
) -> None:
    image, mask = picture(*size), picture(*size, "L", seed=1)
    ours = prepare(image, mask, Preparation(LIMITS, *wanted, resize_mode=mode))  # type: ignore[arg-type]
    assert ours.size == wanted
    width, height = wanted
    assert np.array_equal(
        ours.pixel_array(), as_bytes(IMAGES.preprocess(image, height=height, width=width, resize_mode=theirs))
    )
    expected = MASKS.preprocess(mask, height=height, width=width, resize_mode=theirs)
    assert np.array_equal(ours.mask_array(), 255 * expected[0, 0].numpy())


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=40, deadline=None)
def test_images_of_all_sizes_get_a_size_of_the_plans(width: int, height: int) -> None:
    assume(width * height < 2_000_000)
    ours = prepare(Image.new("RGB", (width, height), "red"), Image.new("1", (3, 5), 1), PLAIN)
    assert ours.size in LIMITS
    assert (ours.pixel_array() == (255, 0, 0)).all()
    assert ours.mask_array().all()


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (3, 300_000)])
def test_thin_image_is_cropped_before_it_is_enlarged(size: tuple[int, int]) -> None:
    """Its middle is what is used: enlarged whole, it would have billions of pixels."""
    image = Image.new("RGB", size, "red")
    image.paste((0, 0, 255), (size[0] // 2 if size[0] > 3 else 0, size[1] // 2, *size))
    ours = prepare(image, None, PLAIN).pixel_array()
    first, last = ours[0, 0].tolist(), ours[-1, -1].tolist()
    assert first[0] > 240 and last[2] > 240


def test_transparent_pixels_are_laid_on_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    image.paste((0, 0, 0, 128), (0, 0, 8, 64))
    ours = prepare(image, None, PLAIN)
    assert ours.mask is None
    pixels = ours.pixel_array()
    assert [pixels[5, x].tolist() for x in (2, 20, 60)] == [[127, 127, 127], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_image_can_be_its_own_mask(mode: str) -> None:
    """OpenAI's rule: transparent pixels are drawn anew. The colours of those that are kept are not mixed with white."""
    image = Image.new("RGBA", (64, 64), (200, 200, 200, 255))
    image.paste((200, 200, 200, 0), (0, 0, 32, 64))
    if mode != "P":
        image.paste((200, 200, 200, 200), (48, 0, 64, 64))
    image = image.convert(mode) if mode != "P" else image.quantize(4)
    ours = prepare(image, None, Preparation(LIMITS, alpha_is_mask=True))
    assert (ours.mask_array()[:, :32] == 255).all() and (ours.mask_array()[:, 32:] == 0).all()
    assert (abs(ours.pixel_array()[:, 32:].astype(int) - 200) <= 1).all()


@pytest.mark.parametrize("alpha", [128, 200, 255])
def test_image_without_pixels_that_are_more_than_half_transparent_is_no_mask(alpha: int) -> None:
    image = picture(64, 64, "RGBA")
    image.putalpha(alpha)
    ours = prepare(image, None, Preparation(LIMITS, alpha_is_mask=True))
    assert ours == prepare(image, None, PLAIN)
    assert ours.mask is None


def test_own_mask_that_vanishes_in_the_size_is_refused_as_the_images() -> None:
    image = picture(512, 512, "RGBA")
    image.putpixel((5, 5), (0, 0, 0, 0))
    with pytest.raises(InvalidRequest, match="image must select something") as refusal:
        prepare(image, None, Preparation(LIMITS, 64, 64, alpha_is_mask=True))
    assert refusal.value.param == "image"


def test_transparent_part_of_a_mask_is_drawn_anew_and_its_colours_do_not_count() -> None:
    mask = picture(64, 64, "RGBA")
    mask.putalpha(box_mask(64, 64, (16, 0, 64, 64)))
    ours = prepare(picture(64, 64), mask, PLAIN)
    assert (ours.mask_array()[:, :16] == 255).all() and (ours.mask_array()[:, 16:] == 0).all()


def test_colour_of_a_png_that_means_transparent_counts_as_transparent() -> None:
    mask = Image.new("L", (64, 64), 7)
    mask.paste(255, (0, 0, 64, 32))
    mask.info["transparency"] = 7
    ours = prepare(picture(64, 64), mask, PLAIN)
    assert (ours.mask_array()[:32] == 0).all() and (ours.mask_array()[32:] == 255).all()


crops = st.tuples(
    st.tuples(st.integers(20, 500), st.integers(20, 500)),
    st.tuples(st.integers(4, 32), st.integers(4, 32)),
    st.tuples(*[st.floats(0, 0.95)] * 4),
    st.integers(0, 60),
    st.integers(0, 9),
)


@given(crops)
@settings(max_examples=60, deadline=None)
def test_crop_to_the_mask_equals_diffusers(
    drawn: tuple[tuple[int, int], tuple[int, int], tuple[float, ...], int, int],
) -> None:
    """Region, pixels and mask are diffusers'. Its own edges around the fitted part are not pixels of the image."""
    (width, height), (columns, rows), fractions, padding, blur = drawn
    left, right = sorted(int(f * width) for f in fractions[:2])
    top, bottom = sorted(int(f * height) for f in fractions[2:])
    image, mask = picture(width, height), box_mask(width, height, (left, top, right + 1, bottom + 1))
    size = Size(16 * columns, 16 * rows)
    try:
        ours = prepare(
            image, mask, Preparation(LIMITS, size.width, size.height, padding_mask_crop=padding, mask_blur=blur)
        )
    except InvalidRequest:  # a thin mask in a large part vanishes
        assume(False)
    assert ours.paste is not None
    soft = soft_mask(mask, blur)
    box = VaeImageProcessor.get_crop_region(soft, size.width, size.height, padding)
    assert ours.paste.box == box
    kwargs = {"height": size.height, "width": size.width, "resize_mode": "fill", "crops_coords": box}
    inner = fitted_part(Box(*box).size, size)
    assert np.array_equal(ours.pixel_array()[inner], as_bytes(IMAGES.preprocess(image, **kwargs))[inner])
    expected = 255 * MASKS.preprocess(mask, **kwargs)[0, 0].numpy()
    assert np.array_equal(ours.mask_array()[inner], expected[inner])

    generated = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)
    result = paste_back(generated, ours)
    overlay = np.asarray(IMAGES.apply_overlay(soft, image, Image.fromarray(generated), box))
    part = np.s_[box[1] : box[3], box[0] : box[2]]
    assert abs(result[part].astype(int) - overlay[part]).max() <= 1  # diffusers rounds its alpha on the way
    untouched = np.asarray(image).copy()
    result = result.copy()
    result[part] = untouched[part] = 0
    assert np.array_equal(result, untouched)


def fitted_part(box: Size, size: Size) -> tuple[slice, slice]:
    """Return rows and columns of the generated image that show the box; the rest of it repeats their edges."""
    if size.width * box.height < box.width * size.height:
        width, height = size.width, box.height * size.width // box.width
    else:
        width, height = box.width * size.height // box.height, size.height
    top, left = size.height // 2 - height // 2, size.width // 2 - width // 2
    return np.s_[top : top + height, left : left + width]


def test_pasted_pixels_are_the_originals_where_the_mask_is_black_and_generated_where_it_is_white() -> None:
    original = Image.new("RGB", (6, 4), (10, 20, 30))
    paste = Paste(Size(6, 4), original.tobytes(), Box(1, 1, 5, 3), bytes([0, 255, 128, 1, 255, 255, 255, 255]))
    cropped = InitImage(Size(64, 32), bytes(64 * 32 * 3), paste=paste)
    result = paste_back(np.full((32, 64, 3), 200, np.uint8), cropped)
    assert result.shape == (4, 6, 3)
    assert result[1, :, 0].tolist() == [10, 10, 200, 105, 11, 10]
    assert result[2, :, 1].tolist() == [20, 200, 200, 200, 200, 20]
    assert (result[[0, 3]] == (10, 20, 30)).all()


def test_edge_of_a_cropped_part_is_soft_and_wide_enough_for_its_blur() -> None:
    ours = prepare(
        picture(300, 300), box_mask(300, 300, (100, 100, 200, 200)), Preparation(LIMITS, padding_mask_crop=0)
    )
    assert ours.paste is not None
    assert ours.size == LIMITS.default  # and not that of the image, which would be larger than the part
    soft = ours.paste.mask_array()
    assert max(soft[0].max(), soft[-1].max(), soft[:, 0].max(), soft[:, -1].max()) <= 2
    assert soft[len(soft) // 2, len(soft) // 2] == 255
    hard = Preparation(LIMITS, padding_mask_crop=0, mask_blur=0)
    paste = prepare(picture(300, 300), box_mask(300, 300, (100, 100, 200, 200)), hard).paste
    assert paste is not None
    assert (paste.box, set(paste.mask)) == (Box(100, 100, 200, 200), {255})


def test_image_without_a_crop_is_not_pasted() -> None:
    generated = np.zeros((64, 64, 3), np.uint8)
    assert paste_back(generated, prepare(picture(64, 64), None, PLAIN)) is generated


@pytest.mark.parametrize(
    ("image", "mask", "options", "param", "message"),
    [
        ((64, 64), Image.new("L", (64, 64), 127), {}, "mask", "mask must select something to draw anew: white, or"),
        ((64, 64), Image.new("L", (64, 64)), {"padding_mask_crop": 4}, "mask", "selects no pixel of 64x64"),
        ((64, 64), None, {"padding_mask_crop": 4}, "padding_mask_crop", "needs a mask, got none"),
        ((64, 64), None, {"width": 8, "height": 64}, "size", r"64\.\.512 x 64\.\.512 .* multiples of 16; got 8x64"),
        ((64, 64), None, {"width": 70, "height": 64}, "size", "got 70x64"),
        ((64, 64), None, {"width": 65536, "height": 65536}, "size", "got 65536x65536"),
        ((64, 64), None, {"height": 32}, "size", "got 32x32"),
        (
            (64, 64),
            box_mask(64, 64, (30, 30, 31, 31)),
            {"padding_mask_crop": 4, "mask_blur": 64},
            "mask_blur",
            "a radius of 64 pixels leaves nothing",
        ),
        ((4097, 4096), box_mask(9, 9, (0, 0, 5, 5)), {"padding_mask_crop": 4}, "image", "at most 16.8 million pixels"),
    ],
)
def test_what_cannot_be_prepared_is_refused_by_name(
    image: tuple[int, int], mask: Image.Image | None, options: dict[str, int], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        prepare(Image.new("RGB", image), mask, Preparation(LIMITS, **options))  # type: ignore[arg-type]
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"resize_mode": "fill"}, "resize_mode"),
        ({"padding_mask_crop": -1}, "padding_mask_crop"),
        ({"padding_mask_crop": 8193}, "padding_mask_crop"),
        ({"width": 0}, "width"),
        ({"width": 10**400}, "width"),
        ({"height": -64}, "height"),
        ({"mask_blur": -1}, "mask_blur"),
        ({"mask_blur": 65}, "mask_blur"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, int], param: str) -> None:
    with pytest.raises(InvalidRequest, match=param) as refusal:
        Preparation(LIMITS, **options)  # type: ignore[arg-type]
    assert refusal.value.param == param


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_region_is_inside_the_image_and_holds_the_mask(width: int, height: int, columns: int, rows: int) -> None:
    mask = box_mask(width, height, (width // 3, height // 2, width // 3 + 1, height))
    box = crop_region(mask, Size(16 * columns, 16 * rows), 3)
    assert 0 <= box.left <= width // 3 < box.right <= width
    assert 0 <= box.top <= height // 2 < height == box.bottom


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_covering_leaves_no_pixel_empty(width: int, height: int, columns: int, rows: int) -> None:
    covered = covering(Image.new("L", (width, height), 255), Size(columns, rows))
    assert covered.size == (columns, rows)
    assert covered.getextrema() == (255, 255)
