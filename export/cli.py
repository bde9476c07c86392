"""`build-engines`: a checkpoint becomes a plan directory."""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ZImageError
from engine.plan.manifest import Manifest, read

if TYPE_CHECKING:
    from export.progress import BuildProgress

EPILOG = """\
examples:
  build-engines --model Tongyi-MAI/Z-Image-Turbo --fp16 --output engines
  build-engines --model ./my-checkpoint --flavor rtx --compute-capability 8.9,12.0 --output engines
  build-engines --model ./my-checkpoint --profile 512:8 --profile 1024,768x1344,1344x768:2 --output engines
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 1 and one line when something is refused."""
    args = _parser().parse_args(argv)
    warnings.filterwarnings("ignore")  # torch's exporter and DiffSynth warn about themselves
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        from export.progress import BuildProgress

        print(_build(args, BuildProgress()))
    except ModuleNotFoundError as error:
        sys.exit(f"build-engines: {error.name} is not installed; in the checkout: pip install -e '.[export]'")
    except (ZImageError, OSError) as error:
        sys.exit(f"build-engines: {error}")
    except KeyboardInterrupt:
        sys.exit("build-engines: interrupted; nothing was kept")


def _build(args: argparse.Namespace, progress: "BuildProgress") -> Path:
    with progress.stage("loading PyTorch and DiffSynth"):
        from export.build import BuildOptions, build_engines  # seconds of imports, after --help and argument errors
        from export.checkpoint.lora import Lora

    capabilities = tuple(args.compute_capability.split(",")) if args.compute_capability else ()
    options = BuildOptions(
        model=args.model,
        output=args.output,
        precision=args.precision,
        flavor=args.flavor,
        profiles=tuple(args.profile),
        compute_capabilities=capabilities,
        transformer_file=args.transformer_file,
        loras=tuple(map(Lora.parse, args.lora)),
        refittable=args.refittable,
        verify=args.verify,
    )
    directory = build_engines(options, progress)
    if args.explain:
        for line in _explain(read(directory, verify=False)):
            print(line, file=sys.stderr)
    return directory


def _explain(manifest: Manifest) -> Iterator[str]:
    """The bounds of every product in FP16, a line each."""
    products = [product for graph in manifest.graphs.values() for product in graph.products]
    width = max((len(product.name) for product in products), default=0)
    yield f"{'product':{width}}  input at most, held at  output at most, held at"
    for p in products:
        entering, leaving = f"{p.input_bound:.1e}  2^{-p.input_shift}", f"{p.output_bound:.1e}  2^{-p.output_shift}"
        yield f"{p.name:{width}}  {entering:22}  {leaving}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "build-engines",
        description="Builds the plans of a Z-Image checkpoint; prints their directory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH|ID", help="a folder in the official layout, or a hub id"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where plan directories are kept")
    precision = parser.add_mutually_exclusive_group()
    for name in ("fp16", "bf16", "fp32"):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name)
    parser.set_defaults(precision="fp16")
    parser.add_argument(
        "--flavor",
        choices=("auto", "tensorrt", "rtx", "onnx"),
        default="auto",
        help="tensorrt: this machine's GPU; rtx: consumer GPUs, also ahead of time; onnx: ONNX Runtime on a CPU; "
        "auto: by what is installed here (default)",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="8.9,12.0",
        help="GPUs to build for, with --flavor rtx; default: all that have the precision",
    )
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="SIZES[:BATCH]",
        help="a box of image sizes, tuned for the first, such as 512,1024x1536:2; repeatable; "
        "default: 1/4 to 1 times the model's own size in batches of 4, and up to 2 times one at a time",
    )
    parser.add_argument(
        "--transformer-file",
        type=Path,
        metavar="FILE",
        help="a single-file (ComfyUI) safetensors in place of transformer/'s",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="merge a LoRA into the transformer; repeatable; peft, DiffSynth, ComfyUI and kohya keys",
    )
    parser.add_argument(
        "--refittable",
        action="store_true",
        help="plans in which a LoRA that zimage-lora prepared can be swapped in and out; they are less optimised",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print what bounds every product in FP16, and the powers of two that follow",
    )
    parser.add_argument(
        "--verify",
        choices=("auto", "always", "never"),
        default="auto",
        help="compare each exported graph with DiffSynth's forward pass; auto: if the memory suffices (default)",
    )
    return parser


if __name__ == "__main__":
    main()
