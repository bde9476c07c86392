"""Images that come in, once they are prepared for the plans: pixels, mask, and the original to paste the result into.

Knows neither files nor how images are prepared (see `engine.images`). Its imports are fast: arrays load numpy.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.size import Size

if TYPE_CHECKING:
    from engine.array import Array


class Box(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are outside of it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        return Size(self.right - self.left, self.bottom - self.top)


@dataclass(frozen=True, slots=True)
class Paste:
    """An original image, and the place in it where the generated image goes.

    Attributes:
        size: of the original, and of the result.
        pixels: [height, width, 3] uint8, RGB, of the original.
        box: the part of the original that is generated.
        mask: [box height, box width] uint8: 255 takes the generated pixel, 0 keeps the original one, and values between
            mix both.
    """

    size: Size
    pixels: bytes = field(repr=False)
    box: Box
    mask: bytes = field(repr=False)

    def pixel_array(self) -> "Array":
        """Return the original, [height, width, 3] uint8, read-only."""
        return _array(self.pixels, (self.size.height, self.size.width, 3))

    def mask_array(self) -> "Array":
        """Return the soft mask, [box height, box width] uint8, read-only."""
        return _array(self.mask, (self.box.size.height, self.box.size.width))


@dataclass(frozen=True, slots=True)
class InitImage:
    """An image to start from, in the size of the image to generate.

    Attributes:
        size: the request's size.
        pixels: [height, width, 3] uint8, RGB.
        mask: [height, width] uint8, 255 where the image is drawn anew and 0 where it is kept; None to draw all of it.
        paste: the original that the result is pasted into; None if the result is the whole image.
        notes: sentences for the user about how the image was read, such as "only its first frame is used".
        sha256: `digest()`, if it is known: the digest of a large image takes a tenth of a second.
    """

    size: Size
    pixels: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)
    paste: Paste | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    sha256: str = field(default="", repr=False, compare=False)

    @property
    def is_inpainting(self) -> bool:
        """True if a mask says what is drawn anew."""
        return self.mask is not None

    @property
    def result_size(self) -> Size:
        """Size of the image that the user gets."""
        return self.size if self.paste is None else self.paste.size

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels and masks."""
        parts = [self.pixels, self.mask or b""]
        if self.paste is not None:
            parts += [self.paste.pixels, self.paste.mask]
        return sum(map(len, parts))

    def pixel_array(self) -> "Array":
        """Return the pixels, [height, width, 3] uint8, read-only."""
        return _array(self.pixels, (self.size.height, self.size.width, 3))

    def mask_array(self) -> "Array":
        """Return the mask, [height, width] uint8 of 0 and 255, read-only. There must be one."""
        assert self.mask is not None
        return _array(self.mask, (self.size.height, self.size.width))

    def latents_mask(self, vae_scale: int) -> "Array":
        """Return the mask of the latents, [height / vae_scale, width / vae_scale] float32 of 0 and 1.

        It is torch's `interpolate` of mode "nearest": the pixel at the top left of each latent.
        """
        mask: Array = (self.mask_array()[::vae_scale, ::vae_scale] / 255).astype("float32")
        return mask

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal digits, of all that decides about the generated image and its pasting."""
        if self.sha256:
            return self.sha256
        digest = hashlib.sha256(b"zimage-trt init image 1")
        parts = [repr(tuple(self.size)).encode(), self.pixels, self.mask]
        if self.paste is not None:
            parts += [repr((*self.paste.size, *self.paste.box)).encode(), self.paste.pixels, self.paste.mask]
        for part in parts:  # each with its length, so that no two lists of parts are the same bytes
            digest.update(b"none" if part is None else len(part).to_bytes(8, "big"))
            digest.update(part or b"")
        return digest.hexdigest()


def _array(data: bytes, shape: tuple[int, ...]) -> "Array":
    import numpy as np  # not at the top: the server's process passes these bytes on and has no other use for numpy

    return np.frombuffer(data, np.uint8).reshape(shape)
