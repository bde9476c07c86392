"""The distinct images that the clients of a soak ask for, and how the engine alone generates them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.pixels import Pixels, psnr
from engine.images.encode import encode
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.request import ImageFormat, ImageKind, ImageRequest
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_registry import LoraRegistry
from engine.size import Size

MAX_IMAGES = 4  # per job: of one prompt, with consecutive seeds
TOLERANCE = 1  # largest difference of a pixel, of 255: a batch rounds sums in another order
LOSSY_DB = 35.0  # a difference of 1 before JPEG or WebP may become larger; other images are below 30 dB
PROMPTS = (
    "a large orange star below a yellow heart, on a pink background",
    "橙色背景，右下角有一个蓝色圆环",
    "a white star in the top left corner, on a yellow background",
    "左上角有一个小粉色爱心,蓝色背景",
)
SIZES = (Size(64, 64), Size(96, 64), Size(128, 128), Size(64, 128))
LONG = {"emoji": "😀" * 32_000, "one word": "a" * 32_000, "combining marks": "e\u0301\u0323\u0327" * 8_000}


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with its settings; `seed` is that of a job's first image."""

    prompt: str
    size: Size
    seed: int
    steps: int = 4
    guidance: float = 0.0
    lora: str | None = None

    def request(self, index: int = 0) -> ImageRequest:
        """Return the request of a job's image."""
        negative = "a red square" if self.guidance else ""
        return ImageRequest(
            self.prompt, self.size.width, self.size.height, self.seed + index, self.steps, negative, self.guidance,
            self.lora,
        )  # fmt: skip

    def openai(self, **fields: Any) -> dict[str, Any]:
        """Return the body of `POST /v1/images/generations`."""
        request = self.request()
        return {
            "prompt": self.prompt,
            "size": str(self.size),
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": request.negative_prompt,
            "lora": self.lora,
        } | fields

    def task(self, **fields: Any) -> dict[str, Any]:
        """Return the body of the task endpoints."""
        return {
            "prompt": self.prompt,
            "width": self.size.width,
            "height": self.size.height,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "cfg_scale": 1.0 + self.guidance,
            "negative_prompt": self.request().negative_prompt,
            "lora": self.lora,
        } | fields


INNOCENT = Case(PROMPTS[0], Size(64, 64), seed=7)
FLOOD = Case(LONG["emoji"], Size(64, 64), seed=900, guidance=4.0)


def ordinary() -> list[Case]:
    """Return the cases of well-behaved clients."""
    return [
        Case(prompt, size, 100 * row + 10 * column)
        for row, prompt in enumerate(PROMPTS, 1)
        for column, size in enumerate(SIZES)
    ]


def unusual(loras: Sequence[str]) -> list[Case]:
    """Return guided cases, long prompts, and a case of each LoRA."""
    guided = [Case(prompt, SIZES[0], 500, guidance=3.0) for prompt in PROMPTS[:2]]
    named = [Case(PROMPTS[0], SIZES[0], 600, lora=lora) for lora in loras]
    return [*guided, *named, *(Case(prompt, SIZES[0], 700, steps=2) for prompt in LONG.values())]


def generate_all(engines: Path, loras: Mapping[str, Path], threads: int) -> dict[tuple[Case, int], Pixels]:
    """Generate every image of every case, one at a time; return them by case and index."""
    cases = sorted([INNOCENT, FLOOD, *ordinary(), *unusual(list(loras))], key=lambda case: case.lora or "")
    with Pipeline.load(engines, RuntimeOptions(threads=threads, slots=2), verify=False) as pipeline:
        loop = EngineLoop(pipeline, loras=LoraRegistry(pipeline, loras))
        return {
            (case, index): loop.generate(case.request(index)).pixels
            for case in dict.fromkeys(cases)
            for index in range(MAX_IMAGES)
        }


def is_same(data: bytes, expected: Pixels, kind: ImageKind) -> bool:
    """Return True if an image file shows the expected pixels."""
    if kind != "png":
        encoded = encode(expected, ImageFormat(kind))
        return psnr(decoded(data), decoded(encoded)) >= LOSSY_DB
    found = decoded(data)
    return found.shape == expected.shape and int(np.abs(found.astype(int) - expected).max()) <= TOLERANCE


def decoded(data: bytes) -> Pixels:
    """Return the pixels of an image file, [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
