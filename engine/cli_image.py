"""The image that `zimage-generate --image` starts from. Its imports are fast; Pillow is loaded when it is read."""

import argparse
from dataclasses import dataclass, field

from engine.command_line import user_path
from engine.images.preparation import Preparation
from engine.init_image import InitImage
from engine.request import ImageRequest
from engine.size import SizeLimits


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
