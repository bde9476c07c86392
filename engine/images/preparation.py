"""Options for preparing an image that comes in. Knows no images; its imports are fast."""

from dataclasses import dataclass
from typing import Literal, get_args

from engine.errors import InvalidRequest
from engine.size import SizeLimits

ResizeMode = Literal["crop", "stretch"]

MAX_SIDE = 65_536  # pixels; far beyond any plan
MAX_PADDING = 8192  # pixels
MASK_BLUR, MAX_MASK_BLUR = 4, 64  # pixels, AUTOMATIC1111's


@dataclass(frozen=True, slots=True)
class Preparation:
    """Options for bringing an image and its mask to a size that the plans can generate.

    Attributes:
        limits: sizes of the plans.
        width, height: pixels of the image to generate. If one is missing, it follows from the image's aspect ratio; if
            both are, the size is the image's own, fitted to the plans (see `SizeLimits.fitted`).
        resize_mode: for another aspect ratio, "crop" keeps the image's centre and "stretch" distorts the image.
        padding_mask_crop: None to generate the whole image. Otherwise, only the part around the mask is generated, with
            this many pixels of the image around it, and pasted back (diffusers' name; `inpaint_full_res_padding` in
            AUTOMATIC1111's web UI). Without a width and height, the part is generated in the plans' default size.
        mask_blur: pixels, radius of the soft edge with which the part is pasted back.
        alpha_is_mask: True to draw the image's own transparent pixels anew if it comes without a mask and any of its
            pixels are more than half transparent.
        mask_is_inverted: True to draw what the mask leaves anew, and keep what it selects.
        is_filled: True to begin the masked part with the colours around it (see `fill`), not with its own.
        image_param, mask_param: names of the fields that the image and the mask are from, for errors.

    Raises:
        InvalidRequest: a value is out of range; `param` names it.
    """

    limits: SizeLimits
    width: int | None = None
    height: int | None = None
    resize_mode: ResizeMode = "crop"
    padding_mask_crop: int | None = None
    mask_blur: int = MASK_BLUR
    alpha_is_mask: bool = False
    mask_is_inverted: bool = False
    is_filled: bool = False
    image_param: str = "image"
    mask_param: str = "mask"

    def __post_init__(self) -> None:
        if self.resize_mode not in get_args(ResizeMode):
            raise InvalidRequest(
                f"resize_mode must be one of {', '.join(get_args(ResizeMode))}; got {self.resize_mode!r:.40}",
                "resize_mode",
            )
        for name, value, low, high in (
            ("width", self.width, 1, MAX_SIDE),
            ("height", self.height, 1, MAX_SIDE),
            ("padding_mask_crop", self.padding_mask_crop, 0, MAX_PADDING),
            ("mask_blur", self.mask_blur, 0, MAX_MASK_BLUR),
        ):
            if value is not None and not low <= value <= high:
                raise InvalidRequest(f"{name} must be between {low} and {high} pixels, got {value}", name)
