"""Scenes that a caption can describe and a program can draw: coloured shapes on a plain or fading background.

A `Scene` has only the facts of its caption. Other properties are random, except for places: without a place, a single
thing is in the centre, and two things are side by side, the first on the left. The module does not know captions
(`nano.captions`), and it does not judge images (`nano.judge`).
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Point = tuple[float, float]
Style = Literal["filled", "outlined"]

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (50, 160, 70),
    "cyan": (60, 205, 215),
    "blue": (45, 80, 215),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "white": (250, 250, 250),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "cross", "heart")
RADII = {"small": (0.11, 0.125), None: (0.15, 0.17), "large": (0.195, 0.21)}  # in units of the shorter side
CELLS = {  # places of a single thing: column and row in a 3 x 3 grid
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "centre": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
FIRST_CELL, CELL = 0.26, 0.24  # centre of the first column or row, and the step to the next, as shares of a side
PAIR = 0.265  # centre of the first of two things along their relation, as a share of a side; the second mirrors it
JITTER = 0.01  # largest offset of a centre, as a share of a side
RELATIONS = ("left of", "above")  # position of the first of two things relative to the second
CONTRAST = 75  # least RGB distance between a thing and the background or another thing
MARGIN = 0.04  # least distance between things, and between a thing and the edge, in units of the shorter side
STROKE = 0.24  # width of an outline, in units of the radius
SUPERSAMPLING = 4
SIZES = ((128, 128), (128, 192), (192, 128), (128, 256), (256, 128), (192, 192), (192, 256), (256, 192), (256, 256))
HELD_OUT = 10  # one scene in this many is never trained on


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape, its colour and its size: "small", "large", or None for a size in between, which captions omit."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Background:
    """A plain colour if both colours are equal, else a gradient to the right or downwards."""

    start: str
    end: str
    downwards: bool = False

    @property
    def plain(self) -> bool:
        return self.start == self.end


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing at a place of CELLS, or two things, of which the first is `place` (one of RELATIONS) the second."""

    things: tuple[Thing, ...]
    place: str | None
    background: Background | None

    @property
    def held_out(self) -> bool:
        """True if the scene is for judging only. This depends on the scene alone."""
        things = self.things if self.place else sorted(self.things, key=repr)  # no place, no order
        return zlib.crc32(repr((*things, self.place, self.background)).encode()) % HELD_OUT == 0


def random_scene(rng: Random) -> Scene:
    """Return any scene, held out or not; two in five have two things."""
    while True:
        things = tuple(_random_thing(rng) for _ in range(rng.choice((1, 2))))
        background = None if rng.random() < 0.08 else _random_background(rng)
        place = rng.choice(RELATIONS if len(things) == 2 else tuple(CELLS))
        scene = Scene(things, None if rng.random() < 0.1 else place, background)
        if _distinct(scene.things, background):
            return scene


def training_scene(rng: Random) -> Scene:
    """Return a scene that is not held out."""
    return next(scene for scene in _scenes(rng) if not scene.held_out)


def held_out_scene(rng: Random) -> Scene:
    """Return a scene that is never trained on."""
    return next(scene for scene in _scenes(rng) if scene.held_out)


def with_another_first_thing(scene: Scene, rng: Random) -> Scene:
    """Return a scene whose first thing has another shape and another colour, and the same size."""
    first, *others = scene.things
    while True:
        thing = replace(_random_thing(rng), size=first.size)
        things = (thing, *others)
        if thing.shape != first.shape and thing.colour != first.colour and _distinct(things, scene.background):
            return replace(scene, things=things)


def draw(scene: Scene, height: int, width: int, rng: Random, style: Style = "filled") -> Pixels:
    """Draw a scene, [height, width, 3] uint8; properties that it leaves open come from `rng`."""
    return draw_with_mask(scene, height, width, rng, style)[0]


def draw_with_mask(
    scene: Scene, height: int, width: int, rng: Random, style: Style = "filled"
) -> tuple[Pixels, np.ndarray[Any, np.dtype[np.float32]]]:
    """Draw a scene; also return the coverage of its things, [height, width] float32, 0 for pure background."""
    background = scene.background
    while background is None or not _distinct(scene.things, background):
        background = _random_background(rng)
    image = _gradient(background, height, width)
    things = np.zeros((height, width), np.float32)
    for thing, (x, y, radius) in zip(scene.things, _layout(scene, height, width, rng), strict=True):
        coverage = mask(thing.shape, (x, y), radius, height, width, style)
        image += coverage[..., None] * (np.array(COLOURS[thing.colour], np.float32) - image)
        things += coverage
    return np.rint(image).astype(np.uint8), things


def mask(shape: str, centre: Point, radius: float, height: int, width: int, style: Style = "filled") -> Any:
    """Return the share of each pixel that a shape covers, [height, width] float32; centre and radius in pixels."""
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen, scale = ImageDraw.Draw(canvas), radius * SUPERSAMPLING
    middle = (centre[0] * SUPERSAMPLING, centre[1] * SUPERSAMPLING)
    for ink, outline in _outlines(shape):
        points = [(middle[0] + scale * x, middle[1] + scale * y) for x, y in outline]
        if style == "filled":
            pen.polygon(points, fill=ink)
        else:
            pen.line([*points, *points[:2]], fill=255, width=max(1, round(scale * STROKE)), joint="curve")
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def _scenes(rng: Random) -> Iterator[Scene]:
    while True:
        yield random_scene(rng)


def _random_thing(rng: Random) -> Thing:
    return Thing(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(("small", None, "large")))


def _random_background(rng: Random) -> Background:
    start = rng.choice(tuple(COLOURS))
    end = rng.choice(tuple(COLOURS)) if rng.random() < 0.3 else start
    return Background(start, end, downwards=start != end and rng.random() < 0.5)


def _distinct(things: tuple[Thing, ...], background: Background | None) -> bool:
    """Return True if things differ in colour from each other and from every colour of the background."""
    if len({thing.colour for thing in things}) < len(things):
        return False
    if background is None:
        return True
    start, end = (np.array(COLOURS[name], float) for name in (background.start, background.end))
    behind = np.linspace(start, end, 9)
    distances = [np.linalg.norm(behind - COLOURS[thing.colour], axis=1).min() for thing in things]
    return bool(min(distances) >= CONTRAST)


def _layout(scene: Scene, height: int, width: int, rng: Random) -> list[tuple[float, float, float]]:
    """Choose x, y and radius of each thing in pixels: within the image, at the scene's place, apart from each other."""
    shorter = min(height, width)
    while True:
        radii = [shorter * rng.uniform(*RADII[thing.size]) for thing in scene.things]
        centres = _two_centres(scene.place, rng) if len(radii) == 2 else [_one_centre(scene.place, rng)]
        things = [(x * width, y * height, radius) for (x, y), radius in zip(centres, radii, strict=True)]
        inside = all(
            radius + MARGIN * shorter <= centre <= side - radius - MARGIN * shorter
            for x, y, radius in things
            for centre, side in ((x, width), (y, height))
        )
        gap = math.dist(things[0][:2], things[-1][:2]) - sum(radii) if len(things) == 2 else shorter
        if inside and gap >= MARGIN * shorter:
            return things


def _one_centre(place: str | None, rng: Random) -> Point:
    column, row = CELLS[place or "centre"]
    return _near(FIRST_CELL + CELL * column, FIRST_CELL + CELL * row, rng)


def _two_centres(place: str | None, rng: Random) -> list[Point]:
    first, second = _near(PAIR, 0.5, rng), _near(1 - PAIR, 0.5, rng)
    return [first[::-1], second[::-1]] if place == "above" else [first, second]


def _near(x: float, y: float, rng: Random) -> Point:
    return x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER)


def _gradient(background: Background, height: int, width: int) -> Any:
    start, end = (np.array(COLOURS[name], np.float32) for name in (background.start, background.end))
    ramp = np.linspace(0, 1, height if background.downwards else width, dtype=np.float32)
    ramp = ramp[:, None, None] if background.downwards else ramp[None, :, None]
    return np.broadcast_to(start + ramp * (end - start), (height, width, 3)).copy()


def _outlines(shape: str) -> list[tuple[int, list[Point]]]:
    """Return polygons around (0, 0) in units of the radius, y downwards, each with its ink: 255 adds, 0 removes."""
    if shape == "circle":
        return [(255, _regular(64))]
    if shape == "ring":
        return [(255, _regular(64)), (0, _regular(64, 0.55))]
    if shape == "square":
        return [(255, [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)])]
    if shape == "diamond":
        return [(255, [(0, -1.05), (0.75, 0), (0, 1.05), (-0.75, 0)])]
    if shape == "triangle":
        return [(255, [(0, -0.9), (1.0, 0.8), (-1.0, 0.8)])]
    if shape == "star":
        return [(255, [(r * x, r * y) for r, (x, y) in zip((1.08, 0.45) * 5, _regular(10), strict=True)])]
    if shape == "cross":
        a, b = 0.32, 0.95
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return [(255, corners + [(-x, -y) for x, y in corners])]
    assert shape == "heart", f"shape must be one of {SHAPES}, got {shape}"
    angles = [2 * math.pi * i / 64 for i in range(64)]
    return [(255, [(math.sin(t) ** 3, -_heart_height(t)) for t in angles])]


def _heart_height(angle: float) -> float:
    """Return y (upwards) of the usual heart curve, scaled to half a width of 1."""
    waves = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
    return (waves + 2.5) / 16


def _regular(corners: int, radius: float = 1.0) -> list[Point]:
    """Return the corners of a regular polygon, the first one on top."""
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(radius * math.sin(t), -radius * math.cos(t)) for t in angles]
