"""A judge that counts how many statements of a scene hold for an image.

It first describes the image without the scene: it fits a background to the border, finds connected pieces that differ
from the background, and gives each piece the nearest colour and the best matching shape. Then it compares the
description with the scene. It does not know the origin of the image.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from nano.scenes import CELL, CELLS, COLOURS, FIRST_CELL, RADII, SHAPES, Background, Pixels, Scene, Thing, mask

ATTRIBUTES = ("colour", "shape", "place", "size", "background", "count")
DIFFERENT = 45  # RGB distance from the background above which a pixel belongs to a thing
SMALLEST = 0.004  # least area of a piece as a share of the image; the smallest star has 0.009 at 2 : 1
STRAY = 0.005  # total area that smaller pieces may cover, as a share of the image
DRAWN_RADIUS = 80  # radius in pixels of the shapes to compare with
TEMPLATE = 48  # side in pixels of the square in which shapes are compared
ALIKE = 0.7  # intersection over union below which a piece has no shape
NEAR = 70  # RGB distance from the palette above which a pixel has no colour
PURE = 0.75  # least share of a piece's pixels with its colour
KEPT_MARGIN = 8  # pixels of one latent: beside the mask, the decoder mixes what is kept with what is drawn anew
UNTOUCHED = 45  # RGB distance of a kept pixel from the original, at most; the autoencoder softens edges
PALETTE = np.array(list(COLOURS.values()), np.float32)

Verdict = dict[str, tuple[int, int]]  # attribute -> (statements that hold, all statements)


@dataclass(frozen=True, slots=True)
class Piece:
    """A thing found in an image.

    Attributes:
        shape, colour: None if no shape or colour of the palette matches.
        x, y: centre as shares of width and height.
        radius: in units of the shorter side.
    """

    shape: str | None
    colour: str | None
    x: float
    y: float
    radius: float


def judge(image: Pixels, scene: Scene) -> Verdict:
    """Count the statements that hold, and all statements, for each of ATTRIBUTES.

    Args:
        image: [height, width, 3] uint8.
    """
    behind = fit_background(image)
    pieces, stray = find_pieces(image, behind)
    fixed = [("count", len(pieces) == len(scene.things) and stray <= STRAY)]
    if scene.background is not None:
        fixed.append(("background", _is_background(behind, scene.background)))
    seen = [*pieces, *[None] * len(scene.things)]  # a thing may be missing
    matches = [list(_statements(scene, order)) for order in permutations(seen, len(scene.things))]
    best = max(matches, key=lambda statements: sum(holds for _, holds in statements))
    held, total = Counter[str](), Counter[str]()
    for attribute, holds in [*fixed, *best]:
        total[attribute] += 1
        held[attribute] += holds
    return {attribute: (held[attribute], total[attribute]) for attribute in ATTRIBUTES}


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Return the share of statements that hold over many images, by attribute; attributes without any are left out."""
    totals = {a: np.sum([(0, 0), *(verdict[a] for verdict in verdicts)], axis=0) for a in ATTRIBUTES}
    return {attribute: float(held / total) for attribute, (held, total) in totals.items() if total}


def untouched(image: Pixels, original: Pixels, mask: Any) -> float:
    """Return the share of kept pixels, at least KEPT_MARGIN from the mask, that are the original's within UNTOUCHED.

    Args:
        image, original: [height, width, 3] uint8.
        mask: [height, width], above 0 where the image was drawn anew.
    """
    kept = ~ndimage.binary_dilation(mask > 0, iterations=KEPT_MARGIN)
    distance = np.linalg.norm(image.astype(np.float32) - original, axis=-1)
    return float((distance[kept] <= UNTOUCHED).mean())


def fit_background(image: Pixels) -> Any:
    """Fit a linear gradient per channel to the border's pixels without outliers: [height, width, 3] float32."""
    height, width, _ = image.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    plane = np.stack([np.ones_like(x), x / width, y / height], axis=-1)
    border = np.ones((height, width), bool)
    border[2:-2, 2:-2] = False
    terms, colours = plane[border], image[border].astype(np.float32)
    keep = np.ones(len(colours), bool)
    for _ in range(3):
        fit = np.linalg.lstsq(terms[keep], colours[keep], rcond=None)[0]
        errors = np.linalg.norm(terms @ fit - colours, axis=1)
        keep = errors <= max(DIFFERENT / 3, float(np.median(errors)) * 2)
    return (plane @ fit).astype(np.float32)


def find_pieces(image: Pixels, background: Any) -> tuple[list[Piece], float]:
    """Return the pieces that differ from the background, largest first, and the share of the image in smaller ones."""
    difference = np.linalg.norm(image.astype(np.float32) - background, axis=-1)
    labels, count = ndimage.label(difference > DIFFERENT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    large = [i for i in np.argsort(-areas) if areas[i] >= SMALLEST * labels.size]
    stray = float(areas.sum() - areas[large].sum()) / labels.size
    return [_describe(image, difference, labels == i + 1) for i in large[:4]], stray


def _describe(image: Pixels, difference: Any, piece: Any) -> Piece:
    height, width = piece.shape
    inside = piece & (difference >= 0.6 * np.percentile(difference[piece], 90))  # without half-covered pixels
    rows, columns = np.nonzero(inside)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    shape = _best_shape(inside[top:bottom, left:right])
    radius = np.sqrt(inside.sum() / _areas()[shape]) / min(height, width) if shape else 0.0
    colour = _colour_of(image[inside].astype(np.float32))
    return Piece(shape, colour, (left + right) / 2 / width, (top + bottom) / 2 / height, float(radius))


def _colour_of(pixels: Any) -> str | None:
    """Return the most frequent palette colour of pixels [N, 3], or None if too few of them have it."""
    distances = np.linalg.norm(pixels[:, None] - PALETTE, axis=-1)
    nearest = distances.argmin(axis=1)
    best = int(np.bincount(nearest, minlength=len(PALETTE)).argmax())
    pure = np.mean((nearest == best) & (distances[:, best] <= NEAR))
    return tuple(COLOURS)[best] if pure >= PURE else None


def _best_shape(cut: Any) -> str | None:
    seen = _normalise(cut.astype(np.float32))
    overlaps = {shape: float(np.minimum(seen, t).sum() / np.maximum(seen, t).sum()) for shape, t in _templates()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= ALIKE else None


@cache
def _templates() -> list[tuple[str, Any]]:
    return [(shape, _normalise(_crop(coverage).astype(np.float32))) for shape, coverage in _drawn().items()]


@cache
def _areas() -> dict[str, float]:
    """Return the area of each shape in units of its squared radius."""
    return {shape: float(coverage.sum()) / DRAWN_RADIUS**2 for shape, coverage in _drawn().items()}


def _drawn() -> dict[str, Any]:
    return {shape: mask(shape, (120, 120), DRAWN_RADIUS, 240, 240) > 0.5 for shape in SHAPES}


def _crop(coverage: Any) -> Any:
    rows, columns = np.nonzero(coverage)
    return coverage[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _normalise(cut: Any) -> Any:
    """Centre the cut-out in a square of its longer side and scale it to TEMPLATE pixels."""
    height, width = cut.shape
    side = max(height, width)
    square = np.zeros((side, side), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cut
    return np.asarray(Image.fromarray(square).resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX))


def _statements(scene: Scene, pieces: tuple[Piece | None, ...]) -> Iterator[tuple[str, bool]]:
    """Yield the attribute of each statement about the scene's things, and True if it holds for these pieces."""
    for thing, piece in zip(scene.things, pieces, strict=True):
        yield "colour", piece is not None and piece.colour == thing.colour
        yield "shape", piece is not None and piece.shape == thing.shape
        if thing.size is not None:
            yield "size", piece is not None and _has_size(piece, thing)
    if scene.place is not None:
        yield "place", None not in pieces and _is_placed(scene.place, [p for p in pieces if p is not None])


def _has_size(piece: Piece, thing: Thing) -> bool:
    """Return True if the piece is nearer to the thing's size than to the unnamed size."""
    named, unnamed = RADII[thing.size], RADII[None]
    if thing.size == "small":
        return piece.radius < (named[1] + unnamed[0]) / 2
    return piece.radius > (named[0] + unnamed[1]) / 2


def _is_placed(place: str, pieces: list[Piece]) -> bool:
    first, last = pieces[0], pieces[-1]
    if place in CELLS:
        cell = zip((first.x, first.y), CELLS[place], strict=True)
        return all(abs(share - FIRST_CELL - CELL * index) <= CELL / 2 for share, index in cell)
    across, down = last.x - first.x, last.y - first.y
    return across > abs(down) * 0.5 if place == "left of" else down > abs(across) * 0.5


def _is_background(behind: Any, expected: Background) -> bool:
    """Return True if the fitted gradient has the expected colours at both ends, and the expected direction."""
    height, width, _ = behind.shape
    down = behind[[0, -1], width // 2]  # [2, 3]: the first and the last row
    across = behind[height // 2, [0, -1]]
    along, aside = (down, across) if expected.downwards else (across, down)
    named = [_colour_of(colour[None]) for colour in along]
    return named == [expected.start, expected.end] and float(np.linalg.norm(aside[0] - aside[1])) < DIFFERENT
