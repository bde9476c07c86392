"""The arguments of `zimage-generate`. Its imports are fast."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from engine.command_line import add_version, parse_lora, prepare
from engine.errors import InvalidRequest
from engine.images.preparation import MASK_BLUR, ResizeMode
from engine.options import add_pipeline_arguments
from engine.request import MAX_SEED, RANDOM, ImageRequest

NAME = "zimage-generate"
EXAMPLES = """\
examples:
  zimage-generate "a red circle on a blue background" --engines out/engines
  zimage-generate "a green star" --engines out/engines --size 256x192 --seed 7 -n 4 -o star.jpg
  zimage-generate --prompts prompts.txt --engines out/engines -o out.png
  zimage-generate "a green star" --engines out/engines --image in.png --strength 0.6
  zimage-generate "a green star" --engines out/engines --image in.png --mask mask.png --padding-mask-crop 32

A line of --prompts is a prompt, or a JSON object with prompt and, where they differ from the options, size or width and
height, seed, steps, guidance_scale, negative_prompt, cfg_normalization, cfg_truncation and output. Empty lines and
lines that begin with # are skipped.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        NAME,
        description="Generate images and write them to files, with the prompt and all settings in each file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare(parser)
    _add_image(parser.add_argument_group("image"))
    _add_init_image(parser.add_argument_group("image to start from"))
    _add_files(parser.add_argument_group("files"))
    runtime = parser.add_argument_group("runtime")
    add_pipeline_arguments(runtime)
    runtime.add_argument("-v", "--verbose", action="store_true", help="Log what is loaded, and its GPU memory")
    add_version(parser)
    return parser


def _add_image(group: argparse._ArgumentGroup) -> None:
    group.add_argument("prompt", nargs="?", help="Text to generate an image of")
    group.add_argument(
        "--size",
        metavar="WxH",
        help="Size in pixels, such as 1024x768 (default: that of --image or, without one, that the plans are tuned "
        "for)",
    )
    group.add_argument("-n", type=_count, default=1, metavar="N", dest="count", help="Images per prompt (default: 1)")
    group.add_argument(
        "--seed",
        type=int,
        default=RANDOM,
        metavar="N",
        help=f"Seed of the first image, 0 to {MAX_SEED}; each further image has the next one (default: a random one, "
        "which the command prints)",
    )
    group.add_argument("--steps", type=int, metavar="N", help="Denoising steps (default: the model's number)")
    _add_guidance(group)
    group.add_argument(
        "--lora",
        type=parse_lora,
        metavar="FILE[:STRENGTH]",
        help="File written by zimage-lora; needs refittable plans (default strength: 1)",
    )


def _add_guidance(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--negative-prompt", default="", metavar="TEXT", help="Text that guidance moves away from")
    group.add_argument(
        "--guidance-scale",
        type=float,
        metavar="X",
        help="Guidance scale as in diffusers; above 0, every step takes two forward passes (default: the model's)",
    )
    group.add_argument(
        "--cfg-normalization",
        type=float,
        default=ImageRequest("").cfg_normalization,
        metavar="X",
        help="Largest norm of the guided velocity, relative to the positive one's; 0 for no bound (the default)",
    )
    group.add_argument(
        "--cfg-truncation",
        type=float,
        default=ImageRequest("").cfg_truncation,
        metavar="X",
        help="Progress (1 - noise level) beyond which steps are not guided, 0 to 1 (default: %(default)s, never)",
    )


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompts", metavar="FILE", help="File with a prompt per line, in place of PROMPT; - reads standard input"
    )
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out.png"),
        metavar="FILE",
        help="File to write: a .png, .jpg or .webp file; several images become out-1.png, out-2.png, ... (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--quality",
        type=int,
        default=100,
        metavar="N",
        help="Quality of JPEG and WebP, 0 to 100 (default: %(default)s)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Check that options which need an image or a mask have it.

    Raises:
        InvalidRequest: one does not.
    """
    _require(args, "image", ("mask", "strength", "padding_mask_crop", "mask_blur", "resize_mode"))
    _require(args, "mask", ("padding_mask_crop",))
    _require(args, "padding_mask_crop", ("mask_blur",))


def _add_init_image(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", metavar="FILE", help="Image to start from: PNG, JPEG, WebP, GIF or BMP")
    group.add_argument(
        "--mask", metavar="FILE", help="Where the image is drawn anew: white (or transparent), all else is kept"
    )
    group.add_argument(
        "--strength",
        type=float,
        metavar="X",
        help="Share of the steps that are run, above 0 and up to 1; higher ones keep less of the image (default: 0.6, "
        "with a mask 1)",
    )
    group.add_argument(
        "--padding-mask-crop",
        type=int,
        metavar="N",
        help="Generate only the part around the mask, in the whole size, with N pixels of the image around it, and "
        "paste it back",
    )
    group.add_argument(
        "--mask-blur", type=int, metavar="N", help=f"Pixels, radius of that part's soft edge (default: {MASK_BLUR})"
    )
    group.add_argument(
        "--resize-mode",
        choices=get_args(ResizeMode),
        help="How to bring the image to another aspect ratio (default: crop)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _require(args: argparse.Namespace, needed: str, options: Iterable[str]) -> None:
    for name in options:
        if getattr(args, name) is not None and getattr(args, needed) is None:
            raise InvalidRequest(f"{_option(name)} needs {_option(needed)}", name)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
