"""Image sizes: (width, height) in pixels, in every interface; only tensor shapes have the height first."""

import re
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
