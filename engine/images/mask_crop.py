"""Crop to the mask: which part of an image is generated, and how the result is pasted back with a soft edge.

The region is the one of diffusers' `VaeImageProcessor.get_crop_region`. Knows no files.
"""

from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from engine.init_image import Box, InitImage
from engine.size import Size

if TYPE_CHECKING:
    from engine.array import Array

MAX_SCALED = 64_000_000  # pixels of an image before it is cropped; Pillow takes 4 bytes for each
LANCZOS, NEAREST = Image.Resampling.LANCZOS, Image.Resampling.NEAREST


def crop_region(mask: Image.Image, size: Size, padding: int) -> Box:
    """Return the part of an image to generate: the mask's box with `padding` around it, in the aspect ratio of `size`.

    At the image's edges, the part has another aspect ratio if the image is too narrow for it.

    Args:
        mask: a mask of mode "L" with at least one pixel above 0.
    """
    box = mask.getbbox()
    assert box is not None
    left, right = max(box[0] - padding, 0), min(box[2] + padding, mask.width)
    top, bottom = max(box[1] - padding, 0), min(box[3] + padding, mask.height)
    ratio = size.width / size.height
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, int((right - left) / ratio), mask.height)
    else:
        left, right = _grown(left, right, int((bottom - top) * ratio), mask.width)
    return Box(left, top, right, bottom)


def _grown(low: int, high: int, wanted: int, most: int) -> tuple[int, int]:
    """Return an interval grown to a length around its middle, moved to lie between 0 and `most`, and cut there."""
    more = max(wanted - (high - low), 0)
    low -= more // 2
    high += more - more // 2
    if high > most:
        low, high = low - (high - most), most
    if low < 0:
        low, high = 0, min(high - low, most)
    return low, high


def soft_mask(mask: Image.Image, blur: int) -> Image.Image:
    """Return a mask of mode "L" with an edge that is blurred by a radius in pixels."""
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def filled(image: Image.Image, size: Size) -> Image.Image:
    """Return an image fitted into a size with its aspect ratio, centred, with its outermost pixels repeated around it.

    As diffusers' resize mode "fill", whose last row or column is black at odd differences.
    """
    if size.width * image.height < image.width * size.height:
        inner = Size(size.width, max(image.height * size.width // image.width, 1))
    else:
        inner = Size(max(image.width * size.height // image.height, 1), size.height)
    resized = image.resize(inner, LANCZOS)
    left, top = size.width // 2 - inner.width // 2, size.height // 2 - inner.height // 2
    right, bottom = left + inner.width, top + inner.height
    whole = Image.new(image.mode, size)
    whole.paste(resized, (left, top))
    for start, stop, edge in ((0, left, left), (right, size.width, right - 1)):
        if stop > start:
            column = whole.crop((edge, 0, edge + 1, size.height))
            whole.paste(column.resize((stop - start, size.height), NEAREST), (start, 0))
    for start, stop, edge in ((0, top, top), (bottom, size.height, bottom - 1)):
        if stop > start:
            row = whole.crop((0, edge, size.width, edge + 1))
            whole.paste(row.resize((size.width, stop - start), NEAREST), (0, start))
    return whole


def covering(image: Image.Image, size: Size) -> Image.Image:
    """Return the middle of an image, scaled to cover a size with its aspect ratio: diffusers' resize mode "crop"."""
    if size.width * image.height > image.width * size.height:
        outer = Size(size.width, image.height * size.width // image.width)
    else:
        outer = Size(image.width * size.height // image.height, size.height)
    if outer.area > MAX_SCALED:  # of a thin image; 1x9999 would need gigabytes
        width = min(size.width * image.height / size.height, image.width)
        height = min(size.height * image.width / size.width, image.height)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        return image.resize(size, LANCZOS, (left, top, left + width, top + height))
    left, top = outer.width // 2 - size.width // 2, outer.height // 2 - size.height // 2
    return image.resize(outer, LANCZOS).crop((left, top, left + size.width, top + size.height))


def paste_back(pixels: "Array", init_image: InitImage) -> "Array":
    """Return the image that the user gets: the generated one, pasted into the original if that was cropped.

    Pixels outside of the box, and those where the soft mask is 0, are the original's exactly.

    Args:
        pixels: [height, width, 3] uint8, RGB, of the generated image.

    Returns:
        [height, width, 3] uint8, of `init_image.result_size`.
    """
    import numpy as np  # not at the top: the process that decodes uploads pastes nothing

    paste = init_image.paste
    if paste is None:
        return pixels
    box = paste.box
    generated = np.asarray(covering(Image.fromarray(pixels), box.size), np.uint32)
    result = paste.pixel_array().copy()
    part = result[box.top : box.bottom, box.left : box.right]
    weight = paste.mask_array()[..., None].astype(np.uint32)
    part[...] = (generated * weight + part * (255 - weight) + 127) // 255
    return result
