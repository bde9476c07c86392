"""Requests that measure overhead, the same for the server and for the engine alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from engine.request import ImageRequest

PROMPTS = (
    "a large orange star below a yellow heart, on a pink background",
    "橙色背景，右下角有一个蓝色圆环",
    "on a background fading top to bottom from red to green, a purple circle",
    "黑色背景，一个小红色正方形",
    "a white star in the top left corner, on a yellow background",
    "左上角有一个小粉色爱心,蓝色背景",
    "a small yellow ring at the top, on a background fading left to right from green to orange",
    "中间有一个小绿色星星，蓝色背景",
)  # few, so that both sides soon have their embeddings cached


@dataclass(frozen=True, slots=True)
class Case:
    """One square image with a side of `size` pixels."""

    prompt: str
    size: int
    seed: int

    def request(self) -> ImageRequest:
        return ImageRequest(self.prompt, self.size, self.size, self.seed)

    def body(self) -> dict[str, Any]:
        """Return the body of `POST /v1/images/generations`."""
        return {"prompt": self.prompt, "size": f"{self.size}x{self.size}", "seed": self.seed}


def cases(size: int) -> Iterator[Case]:
    """Yield cases without end, each with its own seed."""
    return (Case(PROMPTS[number % len(PROMPTS)], size, number) for number in count())
