"""Command line of `build-engines`, which builds a plan directory from a checkpoint."""

import argparse
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command_line import add_version, one_line_errors, prepare
from engine.errors import CheckpointError
from engine.plan.directory import read
from engine.plan.manifest import Manifest
from engine.request import MAX_GUIDANCE, MAX_STEPS
from export.checkpoint.file_kinds import describe
from export.checkpoint.hub import Location, find

if TYPE_CHECKING:
    from export.progress import BuildProgress

AHEAD_OF_TIME = ("onnx", "rtx")  # flavors whose plans do not depend on this machine

EPILOG = """\
examples:
  build-engines --model Tongyi-MAI/Z-Image-Turbo --fp16 --output engines
  build-engines --model ./my-checkpoint --flavor rtx --compute-capability 8.9,12.0 --output engines
  build-engines --model ./my-checkpoint --profile 512:8 --profile 1024,768x1344,1344x768:2 --output engines
"""


def main(argv: list[str] | None = None) -> None:
    """Run `build-engines`. Errors exit with status 1 and one line on stderr."""
    args = _parser().parse_args(argv)
    warnings.filterwarnings("ignore")  # torch's exporter and DiffSynth emit warnings about their own code
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with one_line_errors("build-engines"):
        try:
            directory = _find_or_build(args)
        except ModuleNotFoundError as error:
            sys.exit(f"build-engines: {error.name} is not installed; in the checkout: pip install -e '.[export]'")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was kept") from None
        print(directory)
        if args.explain:
            for line in _explain(read(directory, verify=False)):
                print(line, file=sys.stderr)


def _find_or_build(args: argparse.Namespace) -> Path:
    """Return the plan directory of the arguments. PyTorch is imported only if there is something to build."""
    from export import known_builds
    from export.progress import BuildProgress

    location = _check(args)
    progress = BuildProgress()
    inputs = None
    if location is not None and location.path.is_dir() and args.flavor in AHEAD_OF_TIME:
        inputs = known_builds.digest(*_inputs(args, location.path))
    if inputs and (found := known_builds.find(args.output, inputs, needs_verified=args.verify)):
        progress.console.print(f"found {found}, which was built from the same inputs")
        return found
    built = _build(args, progress)
    if inputs:
        known_builds.record(args.output, inputs, built)
    return built


def _check(args: argparse.Namespace) -> Location | None:
    """Return where the checkpoint is; None for a hub id.

    Raises:
        CheckpointError: there is none, or a file of another kind.
        BuildError: options contradict each other, whatever the checkpoint is.
    """
    from export.compile.profiles import split_profile
    from export.compile.target import compute_capabilities, require_distinct
    from export.precision.dtypes import graph_precisions, require_accumulation

    require_distinct("--profile", args.profile)
    for profile in args.profile:
        split_profile(profile)
    if args.flavor != "auto":
        require_accumulation(args.accumulate, args.precision, args.flavor)
    if args.flavor in AHEAD_OF_TIME:
        capabilities = compute_capabilities(args.flavor, _capabilities(args))
        graph_precisions(args.precision, args.flavor, capabilities)
    location = find(args.model)
    for file in (location.path if location and not location.path.is_dir() else None, args.transformer_file):
        if file and (reason := describe(file)):
            raise CheckpointError(f"{file} {reason}")
    return location


def _capabilities(args: argparse.Namespace) -> tuple[str, ...]:
    named = args.compute_capability  # an empty text names none, and is refused
    return () if named is None else tuple(text.strip() for text in named.split(","))


def _inputs(args: argparse.Namespace, model: Path) -> tuple[dict[str, object], list[Path]]:
    """Return the options that change the plans, and the files that do."""
    options = {name: value for name, value in vars(args).items() if name not in ("output", "explain", "verify")}
    files = [_lora_file(text) for text in args.lora]
    files += [config for file in files if (config := file.with_name("adapter_config.json")).is_file()]
    if args.transformer_file:
        files.append(args.transformer_file)
    return options | {"model": str(model.resolve())}, [model, *files]


def _lora_file(text: str) -> Path:
    """Return the file in FILE or FILE:SCALE."""
    file = text.rpartition(":")[0]
    return Path(file) if file and not Path(text).is_file() else Path(text)


def _build(args: argparse.Namespace, progress: "BuildProgress") -> Path:
    with progress.stage("loading PyTorch and DiffSynth"):
        from export.build import BuildOptions, build_engines  # takes seconds; --help and argument errors come first
        from export.checkpoint.lora import Lora

    options = BuildOptions(
        model=args.model,
        output=args.output,
        precision=args.precision,
        accumulation=args.accumulate,
        flavor=args.flavor,
        profiles=tuple(args.profile),
        compute_capabilities=_capabilities(args),
        transformer_file=args.transformer_file,
        loras=tuple(map(Lora.parse, args.lora)),
        refittable=args.refittable,
        image_input=args.image_input,
        verify=args.verify,
        name=args.name,
        default_steps=args.default_steps,
        default_guidance=args.default_guidance,
    )
    return build_engines(options, progress)


def _explain(manifest: Manifest) -> Iterator[str]:
    """Yield the sizes of TensorRT plans, and a table with the bounds and scales of every product in FP16."""
    from export.compile.plan_size import describe

    if manifest.target.flavor != "onnx":
        sizes = {file.path: file.size for file in manifest.files}
        for name, graph in manifest.graphs.items():
            yield from describe(name, graph, sizes[graph.file])
    products = [product for graph in manifest.graphs.values() for product in graph.products]
    if not products:
        yield f"no products are in FP16, so none are bounded and scaled ({manifest.precision} plans)"
        return
    width = max(len(product.name) for product in products)
    yield f"{'product':{width}}  input bound, scale      output bound, scale"
    for p in products:
        entering, leaving = f"{p.input_bound:.1e}  2^{-p.input_shift}", f"{p.output_bound:.1e}  2^{-p.output_shift}"
        yield f"{p.name:{width}}  {entering:22}  {leaving}"


def _name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text):
        raise argparse.ArgumentTypeError(
            f"expected letters, digits, '.', '-', '_' and one '/' at most, as in Tongyi-MAI/Z-Image; got {text!r}"
        )
    return text


def _steps(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_STEPS):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_STEPS}, got {text!r}")
    return int(text)


def _guidance(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 <= scale <= MAX_GUIDANCE:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {MAX_GUIDANCE:g}, got {text!r}")
    return scale


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "build-engines",
        description="Build a directory of plans from a Z-Image checkpoint, and print its path.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare(parser)
    _add_weights(parser.add_argument_group("weights"))
    _add_defaults(parser.add_argument_group("defaults of requests"))
    _add_number_formats(parser.add_argument_group("number formats"))
    _add_target(parser.add_argument_group("GPUs and image sizes"))
    build = parser.add_argument_group("build")
    build.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="Folder that plan directories are written to"
    )
    build.add_argument(
        "--explain",
        action="store_true",
        help="Print the size of every plan beside that of its weights, and the bound of every FP16 product with the "
        "power of two that it is scaled by",
    )
    build.add_argument(
        "--no-image-input",
        dest="image_input",
        action="store_false",
        help="Leave out the VAE encoder, and with it images as inputs",
    )
    build.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="Do not compare the exported graphs with DiffSynth's forward passes; such plans have no self-test",
    )
    add_version(parser)
    return parser


def _add_weights(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        required=True,
        metavar="PATH|ID",
        help="Folder of the checkpoint in the official layout, or a safetensors file with all models beside its "
        "tokenizer/ and scheduler/, or a hub id, which is downloaded",
    )
    group.add_argument(
        "--name",
        type=_name,
        metavar="NAME",
        help="Name of the model in the plans (default: the hub id, or the name of the folder or file)",
    )
    group.add_argument(
        "--transformer-file",
        type=Path,
        metavar="FILE",
        help="Safetensors file that holds the transformer, alone or beside other models (ComfyUI's or the official "
        "keys, FP8 with scales included), in place of the weights in transformer/",
    )
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="LoRA, LoHa, LoKr or DoRA to merge into the transformer, with the keys of any common trainer; repeatable "
        "(default strength: 1)",
    )
    group.add_argument(
        "--refittable",
        action="store_true",
        help="Build plans that can swap LoRAs prepared by zimage-lora at run time; such plans are less optimised",
    )


def _add_defaults(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--default-steps",
        type=_steps,
        metavar="N",
        help="Denoising steps of requests that name none (default: 50 if the scheduler's shift is nearer to Z-Image's, "
        "6, than to Z-Image-Turbo's, 3; else 8)",
    )
    group.add_argument(
        "--default-guidance",
        type=_guidance,
        metavar="X",
        help="Guidance scale of requests that name none, 0 for no guidance (default: 4 with Z-Image's shift, 0 with "
        "Z-Image-Turbo's)",
    )


def _add_number_formats(group: argparse._ArgumentGroup) -> None:
    precision = group.add_mutually_exclusive_group()
    for name, text in (
        ("fp16", "Compute matrix products in FP16, scaled so that they cannot overflow (default)"),
        ("bf16", "Compute matrix products in BF16"),
        ("fp32", "Compute everything in FP32"),
    ):
        precision.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, default="fp16", help=text
        )
    group.add_argument(
        "--accumulate",
        choices=("fp32", "fp16"),
        default="fp32",
        help="With --fp16: number format in which the denoiser sums products; fp16 is less exact, and faster on "
        "consumer GPUs (default: %(default)s)",
    )


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--flavor",
        choices=("auto", "tensorrt", "rtx", "onnx"),
        default="auto",
        help="tensorrt: plans for this machine's GPU; rtx: plans for consumer GPUs, which need not be present; "
        "onnx: graphs for ONNX Runtime on a CPU; auto: chosen by the installed packages and the GPU (default)",
    )
    group.add_argument(
        "--compute-capability",
        metavar="8.9,12.0",
        help="GPUs to build for, with --flavor rtx (default: all that TensorRT-RTX builds for)",
    )
    group.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="SIZES[:BATCH]",
        help="Image sizes that the plans take: all from the smallest to the largest width and height in SIZES, tuned "
        "for the first. A size is WIDTHxHEIGHT or a square's side in pixels. BATCH images at most are generated at a "
        "time (1 if omitted). Example: 512,1024x1536:2. Repeatable (default: 1/4 to 1 times the model's default size "
        "with batches up to 4, and 1/4 to 2 times with batch 1)",
    )


if __name__ == "__main__":
    main()
