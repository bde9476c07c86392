"""Preparation of decoded images as an `InitImage`: sizes, crop or stretch, masks, and crop to the mask.

Images are resized as by diffusers' `VaeImageProcessor`, with Lanczos, so that the same image and mask give the same
pixels. Knows no files (see `decode`).
"""

from dataclasses import replace

from PIL import Image

from engine.errors import InvalidRequest
from engine.images.fill import INVERTED, fill_from_surroundings
from engine.images.mask_crop import covering, crop_region, filled, soft_mask
from engine.images.preparation import Preparation, ResizeMode
from engine.init_image import InitImage, Paste
from engine.size import Size

MAX_PASTE_PIXELS = 4096 * 4096  # of an original that is kept until its image is generated
LANCZOS = Image.Resampling.LANCZOS

HALF = 128  # the first byte that stands for 0.5 or more
WHITE_FROM_HALF = [0] * HALF + [255] * (256 - HALF)


def prepare(
    image: Image.Image, mask: Image.Image | None, preparation: Preparation, notes: tuple[str, ...] = ()
) -> InitImage:
    """Return an image to start from, in a size that the plans can generate.

    Args:
        image: of any mode that Pillow converts to RGB. Transparent pixels are laid on white, unless they are the mask.
        mask: of any mode and size; it is stretched to the image. White is drawn anew. If the mask has transparent
            pixels, these are drawn anew instead, as in OpenAI's API.
        notes: kept in the result.

    Raises:
        InvalidRequest: the size is not one of the plans, the mask selects no pixel or is too small for its blur, or
            `padding_mask_crop` has no mask or a too large image. `param` is "size", "padding_mask_crop", "mask_blur",
            or the name of the image's or mask's field.
    """
    own_mask = _own_mask(image) if mask is None and preparation.alpha_is_mask else None
    rgb = _in_rgb(image, lay_on_white=own_mask is None)
    selected = own_mask if mask is None else _drawn_anew(mask, is_inverted=preparation.mask_is_inverted)
    if own_mask is not None:
        preparation = replace(preparation, mask_param=preparation.image_param)
    if preparation.padding_mask_crop is not None:
        return _crop_to_mask(rgb, selected, preparation, notes)
    original = Size(*rgb.size)
    size = preparation.limits.completed(preparation.width, preparation.height, original)
    _require(size, preparation)
    mode = _resize_mode(original, size, preparation)
    resized = _resized(rgb, size, original, mode)
    if selected is None:
        return InitImage(size, resized.tobytes(), notes=notes)
    binary = _binary(_resized(selected, size, original, mode), size, preparation)
    return InitImage(size, _start(resized, binary, preparation), binary, notes=notes)


def transparency(image: Image.Image) -> Image.Image | None:
    """Return the alpha of an image, 255 where it is opaque, or None if all of it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _own_mask(image: Image.Image) -> Image.Image | None:
    """Return the mask that an image's alpha is, or None if no pixel is more than half transparent."""
    alpha = transparency(image)
    return alpha.point(INVERTED) if alpha is not None and any(alpha.histogram()[:HALF]) else None


def _in_rgb(image: Image.Image, lay_on_white: bool) -> Image.Image:
    """Return an image without alpha; the colours of transparent pixels stay as they are stored unless laid on white."""
    alpha = transparency(image) if lay_on_white else None
    if alpha is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image if image.mode == "RGBA" else image.convert("RGB"), mask=alpha)
    return white


def _drawn_anew(mask: Image.Image, *, is_inverted: bool) -> Image.Image:
    """Return a mask that is white where the image is drawn anew, in a mode without alpha.

    An opaque mask keeps its mode: diffusers resizes it first and then converts it to grey.
    """
    alpha = transparency(mask)
    if alpha is not None:
        return alpha if is_inverted else alpha.point(INVERTED)
    if is_inverted:
        return mask.convert("L").point(INVERTED)
    if mask.mode in ("1", "L", "P", "RGB"):
        return mask
    return mask.convert("L" if mask.mode in ("LA", "La") else "RGB")


def _require(size: Size, preparation: Preparation) -> None:
    if size not in preparation.limits:
        limits = preparation.limits
        ranges = ", ".join(f"{r.min_width}..{r.max_width} x {r.min_height}..{r.max_height}" for r in limits.ranges)
        raise InvalidRequest(
            f"size must be within {ranges} (width x height), in multiples of {limits.multiple}; got {size}", "size"
        )


def _resize_mode(original: Size, size: Size, preparation: Preparation) -> ResizeMode:
    """Return "stretch" if the sides were only rounded down to a multiple, as in diffusers."""
    multiple = preparation.limits.multiple
    rounded = Size(original.width - original.width % multiple, original.height - original.height % multiple)
    return "stretch" if size == rounded else preparation.resize_mode


def _resized(image: Image.Image, size: Size, original: Size, mode: ResizeMode) -> Image.Image:
    """Return an image, or a mask for an image of the size `original`, resized in its own mode."""
    if mode == "stretch":
        return image.resize(size, LANCZOS)
    if image.size != original:
        image = image.resize(original, LANCZOS)
    return covering(image, size)


def _binary(mask: Image.Image, size: Size, preparation: Preparation) -> bytes:
    binary = mask.convert("L").point(WHITE_FROM_HALF)
    if binary.getbbox() is None:
        raise InvalidRequest(
            f"{preparation.mask_param} must select something to draw anew: white, or transparent if it has "
            f"transparent pixels; this one selects no pixel of {size}",
            preparation.mask_param,
        )
    return binary.tobytes()


def _crop_to_mask(
    image: Image.Image, mask: Image.Image | None, preparation: Preparation, notes: tuple[str, ...]
) -> InitImage:
    assert preparation.padding_mask_crop is not None
    if mask is None:
        raise InvalidRequest("padding_mask_crop needs a mask, got none; send one or leave it out", "padding_mask_crop")
    original = Size(*image.size)
    if original.area > MAX_PASTE_PIXELS:
        raise InvalidRequest(
            f"with padding_mask_crop, {preparation.image_param} must have at most {MAX_PASTE_PIXELS / 1e6:.1f} million "
            f"pixels, got {original} ({original.area / 1e6:.1f} million); send a smaller one or no "
            "padding_mask_crop",
            preparation.image_param,
        )
    size = preparation.limits.default
    if preparation.width is not None or preparation.height is not None:
        size = preparation.limits.completed(preparation.width, preparation.height, original)
    _require(size, preparation)
    if mask.size != original:
        mask = mask.resize(original, LANCZOS)
    binary = Image.frombytes("L", original, _binary(mask, original, preparation))
    soft = soft_mask(binary, preparation.mask_blur)
    if soft.getbbox() is None:
        raise InvalidRequest(
            f"mask_blur must be smaller for so small a mask: a radius of {preparation.mask_blur} pixels leaves nothing "
            "of it; send a smaller one or a larger mask",
            "mask_blur",
        )
    box = crop_region(soft, size, preparation.padding_mask_crop)
    cropped = _binary(filled(binary.crop(box), size), size, preparation)
    pixels = _start(filled(image.crop(box), size), cropped, preparation)
    return InitImage(size, pixels, cropped, Paste(original, image.tobytes(), box, soft.crop(box).tobytes()), notes)


def _start(image: Image.Image, binary: bytes, preparation: Preparation) -> bytes:
    """Return the pixels to start from."""
    if not preparation.is_filled:
        return image.tobytes()
    return fill_from_surroundings(image, Image.frombytes("L", image.size, binary)).tobytes()
