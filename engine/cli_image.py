"""The options of `zimage-generate` for an image to start from. Its imports are fast; Pillow is loaded when needed."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

from engine.command_line import user_path
from engine.errors import InvalidRequest
from engine.images.preparation import MASK_BLUR, Preparation, ResizeMode
from engine.init_image import InitImage
from engine.request import ImageRequest
from engine.size import SizeLimits


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add `--image` and the options that go with it."""
    group.add_argument("--image", metavar="FILE", help="Image to start from: PNG, JPEG, WebP, GIF or BMP")
    group.add_argument(
        "--mask", metavar="FILE", help="Where the image is drawn anew: white (or transparent), all else is kept"
    )
    group.add_argument(
        "--strength",
        type=float,
        metavar="X",
        help="Share of the steps that are run, above 0 and up to 1; higher ones keep less of the image (default: 0.6, "
        "with a mask 1)",
    )
    group.add_argument(
        "--padding-mask-crop",
        type=int,
        metavar="N",
        help="Generate only the part around the mask, in the whole size, with N pixels of the image around it, and "
        "paste it back",
    )
    group.add_argument(
        "--mask-blur", type=int, metavar="N", help=f"Pixels, radius of that part's soft edge (default: {MASK_BLUR})"
    )
    group.add_argument(
        "--resize-mode",
        choices=get_args(ResizeMode),
        help="How to bring the image to another aspect ratio (default: crop)",
    )


@dataclass(slots=True)
class ImageOption:
    """The image of `--image`, prepared once for each size that requests ask for."""

    args: argparse.Namespace
    limits: SizeLimits
    prepared: dict[tuple[int | None, int | None], InitImage] = field(default_factory=dict)

    def start(self, request: ImageRequest) -> ImageRequest:
        """Return the request of an image that starts from `--image`.

        Raises:
            InvalidRequest: the image or the mask cannot be used.
            OSError: a file cannot be read.
        """
        size = request.width, request.height
        if size not in self.prepared:
            self.prepared[size] = self._read(*size)
        return request.starting_from(self.prepared[size], self.args.strength)

    def _read(self, width: int | None, height: int | None) -> InitImage:
        from engine.images.source import read_init_image  # loads Pillow

        given = {name: getattr(self.args, name) for name in ("resize_mode", "padding_mask_crop", "mask_blur")}
        preparation = Preparation(
            self.limits, width, height, **{name: value for name, value in given.items() if value is not None}
        )
        mask = None if self.args.mask is None else user_path(self.args.mask)
        return read_init_image(user_path(self.args.image), mask, preparation)


def check_arguments(args: argparse.Namespace) -> None:
    """Check that options which need an image or a mask have it.

    Raises:
        InvalidRequest: one does not.
    """
    _require(args, "image", ("mask", "strength", "padding_mask_crop", "mask_blur", "resize_mode"))
    _require(args, "mask", ("padding_mask_crop",))
    _require(args, "padding_mask_crop", ("mask_blur",))


def _require(args: argparse.Namespace, needed: str, options: Iterable[str]) -> None:
    for name in options:
        if getattr(args, name) is not None and getattr(args, needed) is None:
            raise InvalidRequest(f"{_option(name)} needs {_option(needed)}", name)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
