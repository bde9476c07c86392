"""Command line of `zimage-lora`, which prepares a LoRA for refittable plans."""

import argparse
import sys
from os.path import realpath
from pathlib import Path

from engine.command_line import add_version, one_line_errors, prepare
from engine.files import whole_file
from engine.options import HELP
from engine.plan.directory import read, resolve

EXAMPLE = """\
example:
  zimage-lora outlines.safetensors --model nano/z-image-nano --engines out/refittable -o out/loras/outlines.lora
"""


def main(argv: list[str] | None = None) -> None:
    """Run `zimage-lora`. Errors exit with status 1 and one line on stderr."""
    args = _parser().parse_args(argv)
    with one_line_errors("zimage-lora"):
        _prepare(args)


def _prepare(args: argparse.Namespace) -> None:
    try:
        manifest = read(resolve(args.engines), verify=False)

        from export.checkpoint.files import open_checkpoint  # takes seconds; argument errors come first
        from export.checkpoint.lora import Lora
        from export.prepared_lora import prepare

        checkpoint = open_checkpoint(args.model, args.transformer_file)
        loras = [Lora.parse(text) for text in args.lora]
        if realpath(args.output) in [realpath(lora.file) for lora in loras]:
            sys.exit(f"zimage-lora: the output {args.output} is the LoRA itself; name another file with -o")
        with whole_file(args.output) as file:
            file.write(prepare(checkpoint, loras, manifest).encode())
        print(args.output)
    except ModuleNotFoundError as error:
        sys.exit(f"zimage-lora: {error.name} is not installed; in the checkout: pip install -e '.[export]'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "zimage-lora",
        description="Prepare a LoRA for plans built with --refittable, which can then swap it in at run time.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare(parser)
    parser.add_argument(
        "lora",
        nargs="+",
        metavar="FILE[:STRENGTH]",
        help="LoRA, LoHa, LoKr or DoRA with the keys of any common trainer; several are added up (default strength: 1)",
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH|ID", help="Checkpoint that the plans were built from, folder or hub id"
    )
    parser.add_argument(
        "--transformer-file", type=Path, metavar="FILE", help="The --transformer-file that the plans were built with"
    )
    parser.add_argument(
        "--engines", type=Path, required=True, metavar="DIR", help=HELP["engines"] + ", with --refittable"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="File to write; zimage-generate --lora takes it",
    )
    add_version(parser)
    return parser


if __name__ == "__main__":
    main()
