"""`zimage-generate`: writes one PNG for one prompt."""

import argparse
import logging
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from engine.command_line import prepare
from engine.errors import InvalidRequest, ZImageError
from engine.files import whole_file
from engine.images.encode import encode
from engine.images.metadata import file_metadata
from engine.options import RuntimeOptions, add_pipeline_arguments
from engine.pipeline import Pipeline
from engine.plan.lora import PreparedLora, parse_lora
from engine.request import MAX_SEED, ImageRequest, random_seed
from engine.scheduler.loop import EngineLoop
from engine.size import Size


def main(argv: list[str] | None = None) -> None:
    """Run the command; on an error, exit with status 1 and one line."""
    args = _parser().parse_args(argv)
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run(args)
    except (ZImageError, OSError) as error:
        sys.exit(f"zimage-generate: {error}")
    except KeyboardInterrupt:
        sys.exit("zimage-generate: interrupted; no image was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("zimage-generate", description="Generate one image and write it to a PNG file.")
    prepare(parser)
    parser.add_argument("prompt", help="Text to generate an image of")
    add_pipeline_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out.png"),
        metavar="FILE",
        help="File to write (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        metavar="WxH",
        help="Size in pixels, such as 1024x768 (default: the size that the plans are tuned for)",
    )
    parser.add_argument(
        "--seed", type=int, help=f"Seed, 0 to {MAX_SEED} (default: a random one, which the command prints)"
    )
    parser.add_argument(
        "--lora",
        type=parse_lora,
        metavar="FILE[:STRENGTH]",
        help="File written by zimage-lora; needs refittable plans (default strength: 1)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="Log what is loaded, and its GPU memory")
    parser.add_argument("--steps", type=int, help="Denoising steps (default: the model's number, 8)")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="Text that guidance moves away from")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=ImageRequest("").guidance_scale,
        help="Guidance scale as in diffusers; above 0, every step takes two forward passes (default: %(default)s)",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    width, height = (None, None) if args.size is None else Size.parse(args.size)
    seed = random_seed() if args.seed is None else args.seed
    if args.negative_prompt and not args.guidance_scale:
        raise InvalidRequest("--negative-prompt needs a --guidance-scale above 0", "negative_prompt")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(f"seed must be between 0 and {MAX_SEED}, got {seed}", "seed")
    with whole_file(args.output) as file:
        request = ImageRequest(args.prompt, width, height, seed, args.steps, args.negative_prompt, args.guidance_scale)
        report = _generate(args, request, file)
    print(report)  # after the file is complete: the terminal may be gone


def _generate(args: argparse.Namespace, request: ImageRequest, file: IO[bytes]) -> str:
    """Write an image to a file; return what the command prints."""
    started = time.perf_counter()
    lora_file, strength = args.lora or (None, 1.0)
    lora = None if lora_file is None else PreparedLora.read(lora_file).at(strength)
    with Pipeline.load(args.engines, RuntimeOptions.of(args)) as pipeline:
        refit = "" if lora is None else f", LoRA {pipeline.refit(lora):.2f} s"
        loaded = time.perf_counter()
        image = EngineLoop(pipeline).generate(request)
    if image.prompt.dropped:
        limit = pipeline.manifest.model.prompt.max_tokens
        print(
            f"the prompt is longer than {limit} tokens; ignored: ...{image.prompt.dropped[:60]!r}",
            file=sys.stderr,
        )
    generated = request if lora_file is None else replace(request, lora=lora_file.stem, lora_strength=strength)
    metadata = image.metadata(pipeline.manifest, generated)
    file.write(encode(image.pixels, text=file_metadata(generated, metadata)))
    stages = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in asdict(image.seconds).items() if seconds)
    report = f"{args.output}: {metadata.size}, seed {metadata.seed}, {metadata.forwards} forwards"
    return f"{report}\nload {loaded - started:.2f} s{refit}, {stages}"


if __name__ == "__main__":
    main()
