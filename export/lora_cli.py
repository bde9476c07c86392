"""`zimage-lora`: a LoRA becomes a file that refittable plans can swap in."""

import argparse
import sys
from pathlib import Path

from engine.errors import ZImageError
from engine.files import whole_file
from engine.plan.manifest import read, resolve


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 1 and one line when something is refused."""
    args = _parser().parse_args(argv)
    try:
        manifest = read(resolve(args.engines), verify=False)

        from export.checkpoint.files import open_checkpoint  # seconds of imports
        from export.checkpoint.lora import Lora
        from export.prepare_lora import prepare

        checkpoint = open_checkpoint(args.model, args.transformer_file)
        loras = [Lora.parse(text) for text in args.lora]
        if args.output.resolve() in [lora.file.resolve() for lora in loras]:
            sys.exit(f"zimage-lora: {args.output} is the LoRA itself; name another file with -o")
        with whole_file(args.output) as file:
            file.write(prepare(checkpoint, loras, manifest).encode())
        print(args.output)
    except ModuleNotFoundError as error:
        sys.exit(f"zimage-lora: {error.name} is not installed; in the checkout: pip install -e '.[export]'")
    except (ZImageError, OSError) as error:
        sys.exit(f"zimage-lora: {error}")
    except KeyboardInterrupt:
        sys.exit("zimage-lora: interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("zimage-lora", description=__doc__)
    parser.add_argument("lora", nargs="+", metavar="FILE[:SCALE]", help="peft, DiffSynth, ComfyUI and kohya keys")
    parser.add_argument("--model", required=True, metavar="PATH|ID", help="the checkpoint that the plans are of")
    parser.add_argument("--transformer-file", type=Path, metavar="FILE", help="as in build-engines")
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="plans built with --refittable")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="what zimage-generate takes")
    return parser


if __name__ == "__main__":
    main()
