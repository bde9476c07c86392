"""Image sizes: (width, height) in pixels, in every interface; only tensor shapes have the height first."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from engine.errors import InvalidRequest


class Size(NamedTuple):
    """Width and height of an image in pixels."""

    width: int
    height: int

    @property
    def area(self) -> int:
        """Pixels."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "WIDTHxHEIGHT" or "WIDTH*HEIGHT"; "512" is a square.

        Raises:
            InvalidRequest: the text has another form.
        """
        match = re.fullmatch(r"([0-9]{1,6})(?:[xX*×]([0-9]{1,6}))?", text)
        if match is None:
            raise InvalidRequest(f"size must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text[:40]!r}", "size")
        return cls(int(match[1]), int(match[2] or match[1]))


class SizeRange(NamedTuple):
    """Smallest and largest widths and heights in pixels."""

    min_width: int
    max_width: int
    min_height: int
    max_height: int

    def covers(self, size: Size) -> bool:
        """Return True if width and height are within the bounds."""
        return self.min_width <= size.width <= self.max_width and self.min_height <= size.height <= self.max_height


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """The sizes that plans can generate.

    Attributes:
        multiple: pixels; widths and heights are multiples of it.
        ranges: one per profile; a size is in at least one of them.
        default: the size that the plans are tuned for.
    """

    multiple: int
    ranges: tuple[SizeRange, ...]
    default: Size

    def __contains__(self, size: Size) -> bool:
        is_multiple = size.width % self.multiple == 0 == size.height % self.multiple
        return is_multiple and any(each.covers(size) for each in self.ranges)

    def fitted(self, size: Size) -> Size:
        """Return the size for an image of any size.

        It is the image's own size, with each side rounded down to a multiple, as in diffusers. If no range covers
        that, it is the nearest size with the same aspect ratio, or the nearest aspect ratio that a range covers.
        """
        own = Size(size.width - size.width % self.multiple, size.height - size.height % self.multiple)
        if own in self:
            return own
        return min(self._fitted(size, each) for each in self.ranges)[2]

    def completed(self, width: int | None, height: int | None, size: Size) -> Size:
        """Return a size of which one side or none may be given, for an image of `size`.

        A side that is missing follows from the image's aspect ratio.
        """
        match width, height:
            case None, None:
                return self.fitted(size)
            case int(), int():
                return Size(width, height)
            case int(), None:
                heights = [(r.min_height, r.max_height) for r in self.ranges if r.min_width <= width <= r.max_width]
                return Size(width, self._side(size.height * width / size.width, heights))
            case _:
                assert height is not None
                widths = [(r.min_width, r.max_width) for r in self.ranges if r.min_height <= height <= r.max_height]
                return Size(self._side(size.width * height / size.height, widths), height)

    def _fitted(self, size: Size, within: SizeRange) -> tuple[bool, float, Size]:
        """Return the nearest size within a range, after how far it is from `size`.

        That is True if no scale keeps the aspect ratio, and the logarithm of the change of scale or of aspect ratio.
        """
        low = max(within.min_width / size.width, within.min_height / size.height)
        high = min(within.max_width / size.width, within.max_height / size.height)
        scale = min(max(1.0, low), high)
        fitted = Size(
            self._side(size.width * scale, [(within.min_width, within.max_width)]),
            self._side(size.height * scale, [(within.min_height, within.max_height)]),
        )
        return low > high, abs(math.log(low / high if low > high else scale)), fitted

    def _side(self, length: float, bounds: list[tuple[int, int]]) -> int:
        """Return the multiple below a length that is nearest to it within one of the bounds."""
        down = int(length + 1e-6) // self.multiple * self.multiple
        sides = [
            min(max(down, -(-low // self.multiple) * self.multiple), high // self.multiple * self.multiple)
            for low, high in bounds
        ]
        return min(sides, key=lambda side: abs(side - down), default=down)
