"""`zimage-generate`: one prompt, one PNG."""

import argparse
import random
import sys
import time
from pathlib import Path

from engine.errors import InvalidRequest, ZImageError
from engine.pipeline import PictureRequest, Pipeline
from engine.png import encode_png

MAX_SEED = 2**32 - 1  # MT19937's seed, as torch uses it


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 1 and one line when something is refused."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except (ZImageError, OSError) as error:
        sys.exit(f"zimage-generate: {error}")


def parse_size(text: str) -> tuple[int, int]:
    """ "WIDTHxHEIGHT" in pixels to (height, width); "512" is a square.

    Raises:
        InvalidRequest: names what was got.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InvalidRequest(f"size must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text!r}", "size")
    return int(parts[-1]), int(parts[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("zimage-generate", description="Draws one picture from a plan directory.")
    parser.add_argument("prompt")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="what build-engines --output wrote")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out.png"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--size", metavar="WxH", help="pixels, such as 1024x768; default: what the plans are tuned for")
    parser.add_argument("--seed", type=int, help=f"0..{MAX_SEED}; default: a random one, which is printed")
    parser.add_argument("--steps", type=int, help="forward passes; default: the model's own number, 8")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for one per core; default: %(default)s")
    return parser


def _run(args: argparse.Namespace) -> None:
    height, width = (None, None) if args.size is None else parse_size(args.size)
    seed = random.randint(0, MAX_SEED) if args.seed is None else args.seed
    if not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(f"seed must be between 0 and {MAX_SEED}, got {seed}", "seed")
    started = time.perf_counter()
    pipeline = Pipeline.load(args.engines, threads=args.threads)
    loaded = time.perf_counter()
    picture = pipeline.generate(PictureRequest(args.prompt, height, width, seed, args.steps))
    if picture.prompt.dropped:
        limit = pipeline.manifest.model.prompt.max_tokens
        print(
            f"the prompt is longer than {limit} tokens; left out: ...{picture.prompt.dropped[:60]!r}",
            file=sys.stderr,
        )
    args.output.write_bytes(encode_png(picture.pixels, {"prompt": args.prompt, "seed": str(seed)}))
    stages = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in picture.seconds.items())
    print(f"{args.output}: {picture.width}x{picture.height}, seed {seed}, {picture.num_inference_steps} forwards")
    print(f"load {loaded - started:.2f} s, {stages}")


if __name__ == "__main__":
    main()
