"""Scores of z-image-nano: plans generate images of held-out captions, and `nano.judge` scores the images.

It also scores images whose first thing is drawn anew inside a mask.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks.harness.arguments import count, count_or_zero
from benchmarks.harness.report import finish
from engine.init_image import InitImage
from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.size import Size
from nano.captions import caption
from nano.judge import judge, shares, untouched
from nano.scenes import Pixels, Scene, draw, held_out_scene, with_another_first_thing

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
    parser.add_argument(
        "--inpaint",
        type=count_or_zero,
        default=0,
        metavar="N",
        help="Also draw one of two things anew in N images per size (default: %(default)s)",
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
        if args.inpaint:
            found = score_inpainting(pipeline, Size.parse(size), args.inpaint)
            print(f"{size}, inpainted:", ", ".join(f"{name} {share:.1%}" for name, share in found.items()))
            figures[f"{size}, inpainted"] = {name: round(share, 4) for name, share in found.items()}
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


def inpainted(pipeline: Pipeline, size: Size, number: int) -> tuple[Scene, InitImage, Pixels]:
    """Draw a held-out scene of two things, and generate another first thing in its half of the image.

    Returns:
        The scene that the image shall show, the drawn image with its mask, and the generated pixels.
    """
    rng = Random(SEED + number)
    scenes = iter(lambda: held_out_scene(rng), None)
    scene = next(scene for scene in scenes if len(scene.things) == 2 and scene.background is not None)
    wanted = with_another_first_thing(scene, rng)
    mask = np.zeros((size.height, size.width), np.uint8)
    if scene.place == "above":
        mask[: size.height // 2] = 255
    else:
        mask[:, : size.width // 2] = 255
    image = InitImage(size, draw(scene, size.height, size.width, rng).tobytes(), mask.tobytes())
    request = ImageRequest(caption(wanted, "zh" if number % 2 else "en", rng), seed=number).starting_from(image)
    return wanted, image, pipeline.generate(request, init_image=image).pixels


def score_inpainting(pipeline: Pipeline, size: Size, count: int) -> dict[str, float]:
    """Return the share of correct statements per attribute over `count` inpainted images, and of untouched pixels."""
    verdicts, kept = [], []
    for number in track(range(count), f"{size}, inpainted", total=count):
        scene, image, pixels = inpainted(pipeline, size, number)
        verdicts.append(judge(pixels, scene))
        kept.append(untouched(pixels, image.pixel_array(), image.mask_array()))
    return shares(verdicts) | {"untouched": float(np.mean(kept)), "least untouched": min(kept)}


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
