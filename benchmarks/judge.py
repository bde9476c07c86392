"""Scores of z-image-nano: plans generate images of held-out captions, and `nano.judge` scores the images."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks.harness.arguments import count
from benchmarks.harness.report import finish
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.size import Size
from nano.captions import caption
from nano.judge import judge, shares
from nano.scenes import Pixels, Scene, held_out_scene

SEED = 2026
SIZES = ("128", "256x192", "256")
SHEET_COLUMNS = 6
SHEET_SIZES = tuple(Size(*size) for size in ((192, 192), (256, 128), (256, 192), (256, 256), (192, 256), (128, 128)))
CELL = 256  # side in pixels of a cell of the sheet; images are centred in their cells
PAPER = (246, 246, 246)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="Plans of z-image-nano")
    parser.add_argument(
        "--captions", type=count, default=200, metavar="N", help="Captions per size (default: %(default)s)"
    )
    parser.add_argument(
        "--size", action="append", metavar="WxH", help=f"Image size, repeatable (default: {', '.join(SIZES)})"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="Also write a contact sheet of 18 images")


def run(args: argparse.Namespace) -> None:
    pipeline = Pipeline.load(args.engines)
    figures: dict[str, object] = {"captions": args.captions}
    if args.sheet:
        sheet, captions = contact_sheet(pipeline, 18)
        Image.fromarray(sheet).save(args.sheet, optimize=True)
        print("\n".join(f"{number}. {text}" for number, text in enumerate(captions, 1)))
    for size in args.size or SIZES:
        scores = score(pipeline, Size.parse(size), args.captions)
        for language, found in scores.items():
            print(f"{size}, {language}:", ", ".join(f"{name} {share:.1%}" for name, share in found.items()))
        figures[size] = {
            language: {name: round(share, 4) for name, share in found.items()} for language, found in scores.items()
        }
    finish("judge", figures)


def held_out(count: int) -> Iterator[tuple[Scene, str]]:
    """Yield `count` scenes that training never uses, each with a caption, alternately English and Chinese."""
    rng = Random(SEED)
    for number in range(count):
        scene = held_out_scene(rng)
        yield scene, caption(scene, "zh" if number % 2 else "en", rng)


def score(pipeline: Pipeline, size: Size, count: int) -> dict[str, dict[str, float]]:
    """Return the share of correct statements per attribute over `count` captions at one size, overall and by language.

    The seed of an image is the number of its caption.
    """
    captions = track(enumerate(held_out(count)), str(size), total=count)
    verdicts = [
        judge(pipeline.generate(ImageRequest(text, *size, seed)).pixels, scene) for seed, (scene, text) in captions
    ]
    return {"all": shares(verdicts), "en": shares(verdicts[0::2]), "zh": shares(verdicts[1::2])}


def contact_sheet(pipeline: Pipeline, count: int) -> tuple[Pixels, list[str]]:
    """Return a sheet of images of the first held-out captions in several sizes, row by row, and the captions."""
    rows = -(-count // SHEET_COLUMNS)
    sheet = np.full((rows * CELL, SHEET_COLUMNS * CELL, 3), PAPER, np.uint8)
    captions = []
    for number, (_, text) in enumerate(held_out(count)):
        width, height = SHEET_SIZES[(number + number // SHEET_COLUMNS) % len(SHEET_SIZES)]
        top = number // SHEET_COLUMNS * CELL + (CELL - height) // 2
        left = number % SHEET_COLUMNS * CELL + (CELL - width) // 2
        image = pipeline.generate(ImageRequest(text, width, height, number)).pixels
        sheet[top : top + height, left : left + width] = image
        captions.append(text)
    return sheet, captions
