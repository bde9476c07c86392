"""Images and masks of every kind to start from, and the comparison of what comes out with diffusers.

Knows sizes, strengths and masks; not the command line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random

import numpy as np
from PIL import Image

from benchmarks.harness.eager import Diffusers
from benchmarks.harness.pixels import psnr
from engine.images.preparation import Preparation
from engine.images.prepare import prepare
from engine.init_image import InitImage
from engine.plan.manifest import Manifest
from engine.request import Edit, ImageRequest
from engine.scheduler.loop import EngineLoop
from nano.captions import caption
from nano.scenes import Pixels, draw, random_scene

STRENGTHS = (0.01, 0.1, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0)
STEPS = (8, 8, 8, 4, 12, 1)
SIDES = (64, 80, 96, 128, 160, 192, 256)  # of images of the model's sizes
MASKS = ("full", "empty", "one pixel", "stripes", "soft", "disc", "noise", "other size", "colour")
GUIDANCE = 2.5


@dataclass(frozen=True, slots=True)
class Case:
    """An image to generate from another one.

    Attributes:
        kind: name of the mask's kind, or "img2img" without a mask.
        request: with an `edit` of the strength only.
    """

    kind: str
    request: ImageRequest
    image: Image.Image
    mask: Image.Image | None

    @property
    def strength(self) -> float:
        assert self.request.edit is not None
        return self.request.edit.strength


@dataclass(frozen=True, slots=True)
class Compared:
    """A case with its figures: PSNR in dB, and the forward passes of ours and of diffusers."""

    case: Case
    psnr_db: float
    forwards: int
    diffusers_forwards: int


def cases(seed: int = 0) -> Iterator[Case]:
    """Yield cases without end: a third without a mask, a third with guidance, and every kind of mask in turn."""
    rng = Random(seed)
    for number in count():
        kind = "img2img" if number % 3 == 0 else MASKS[number // 3 * 2 % len(MASKS) + number % 3 - 2]
        is_multiple = kind == "one pixel" or rng.random() < 0.6  # a resized pixel is too grey to count
        width, height = (rng.choice(SIDES) if is_multiple else rng.randint(64, 256) for _ in range(2))
        yield Case(
            kind,
            _request(rng),
            _image(rng, width, height),
            None if kind == "img2img" else mask(kind, rng, width, height),
        )


def mask(kind: str, rng: Random, width: int, height: int) -> Image.Image:
    """Return a mask of a kind of MASKS for an image of this size."""
    chance = np.random.default_rng(rng.getrandbits(32))
    y, x = np.mgrid[0:height, 0:width]
    match kind:
        case "full":
            values = np.full((height, width), 255)
        case "empty":
            values = np.zeros((height, width))
        case "one pixel":
            values = np.zeros((height, width))
            values[height // 16 * 8, width // 16 * 8] = 255
        case "stripes":
            values = (x + y) // rng.choice((3, 8, 20)) % 2 * 255
        case "soft":
            values = 255 * x / width * y / height * 2
        case "noise":
            values = chance.integers(0, 256, (height, width))
        case _:
            values = 255 * (np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height)) < min(width, height) / 2)
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if kind == "other size":
        return image.resize((rng.randint(20, 300), rng.randint(20, 300)))
    return image.convert("RGB") if kind == "colour" else image


def compare(case: Case, loop: EngineLoop, diffusers: Diffusers) -> Compared:
    """Generate a case with a loop and with diffusers."""
    manifest = loop.pipeline.manifest
    init_image = prepared(case, manifest)
    request = case.request.starting_from(init_image, case.strength)
    ours = loop.generate(request, init_image=init_image).pixels
    before = diffusers.forwards
    theirs = diffusers.edit(case.request, case.image, case.mask)
    return Compared(case, psnr(ours, theirs), request.forwards(manifest), diffusers.forwards - before)


def prepared(case: Case, manifest: Manifest) -> InitImage:
    """Return a case's image and mask as the engine takes them; a mask that selects nothing, which is refused, too."""
    preparation = Preparation(manifest.size_limits)
    if case.kind == "empty":
        whole = prepare(case.image, None, preparation)
        return replace(whole, mask=bytes(whole.size.area))
    return prepare(case.image, case.mask, preparation)


def _request(rng: Random) -> ImageRequest:
    return ImageRequest(
        caption(random_scene(rng), rng.choice(("en", "zh")), rng),
        seed=rng.getrandbits(32),
        num_inference_steps=rng.choice(STEPS),
        negative_prompt=rng.choice(("", "a blue star")),
        guidance_scale=rng.choice((0.0, 0.0, GUIDANCE)),
        edit=Edit(rng.choice(STRENGTHS), ""),
    )


def _image(rng: Random, width: int, height: int) -> Image.Image:
    """Return a drawn scene, or noise that the model has never seen."""
    if rng.random() < 0.25:
        return Image.fromarray(
            np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, 3), np.uint8)
        )
    pixels: Pixels = draw(random_scene(rng), height, width, rng)
    return Image.fromarray(pixels)
