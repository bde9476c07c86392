"""Fingerprints of images that were drawn alone, and whether an image drawn under load is the same one.

A batch rounds sums in another order, so the bytes may differ. Two images are the same if their sizes are equal and the
mean difference of their thumbnails, 16x16 RGB, is at most BOUND. An image of one colour, such as a black one, is wrong.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec
import numpy as np
from PIL import Image

from benchmarks.harness.pixels import Pixels
from benchmarks.load.client.cases import Case
from engine.errors import InvalidRequest
from engine.images.decode import decode
from engine.images.header import DecodeLimits

BOUND = 2.0  # of 255. z-image-nano on a CPU: 4.3 or more between different prompts, median 92; 0.0 alone and in a batch
PLAIN = 8  # levels; an image in which no channel spans more has one colour
THUMBNAIL = (16, 16)
LIMITS = DecodeLimits(max_bytes=200_000_000)  # generated images may be stored without compression


class WrongImage(Exception):
    """An answer that is not the image that was asked for."""


class Fingerprint(msgspec.Struct, frozen=True):
    """An image's digest, size and thumbnail, [16, 16, 3] as bytes."""

    sha256: str
    width: int
    height: int
    thumbnail: bytes

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the fingerprint of an image file. Raises WrongImage: it is no image, or has one colour."""
        pixels = _decode(data)
        if np.ptp(pixels, axis=(0, 1)).max() <= PLAIN:
            raise WrongImage(f"the image is plain: one colour, {tuple(int(level) for level in pixels[0, 0])}")
        thumbnail = Image.fromarray(pixels).resize(THUMBNAIL, Image.Resampling.BOX)
        height, width = pixels.shape[:2]
        return cls(hashlib.sha256(data).hexdigest(), width, height, thumbnail.tobytes())

    def distance(self, other: "Fingerprint") -> float:
        """Return the mean absolute difference of the thumbnails, 0 to 255."""
        ours, theirs = (np.frombuffer(each.thumbnail, np.uint8).astype(int) for each in (self, other))
        return float(np.abs(ours - theirs).mean())


class ImageCheck:
    """Compares the images of answers with references; keeps digests of equal images, which it need not decode again."""

    def __init__(self, references: Mapping[str, Sequence[Fingerprint]]) -> None:
        """
        Args:
            references: fingerprints of the images of each case, by its id.
        """
        self._references = references
        self._known = {
            (id, index, image.sha256) for id, images in references.items() for index, image in enumerate(images)
        }

    def require_right(self, case: Case, images: Sequence[bytes]) -> None:
        """Raise WrongImage if the images are not those of the case."""
        references = self._references[case.id]
        if len(images) != len(references):
            raise WrongImage(f"{len(images)} images instead of {len(references)}")
        for index, (data, reference) in enumerate(zip(images, references, strict=True)):
            key = (case.id, index, hashlib.sha256(data).hexdigest())
            if key not in self._known:
                _require_same(Fingerprint.of(data), reference)
                self._known.add(key)


def _require_same(image: Fingerprint, reference: Fingerprint) -> None:
    if (image.width, image.height) != (reference.width, reference.height):
        raise WrongImage(f"an image of {image.width}x{image.height} instead of {reference.width}x{reference.height}")
    if image.distance(reference) > BOUND:
        raise WrongImage("an image of something else than the request drawn alone")


def _decode(data: bytes) -> Pixels:
    try:
        return np.asarray(decode(data, limits=LIMITS).image.convert("RGB"))
    except InvalidRequest as error:
        raise WrongImage(f"no image file: {data[:20]!r}") from error
