"""How long an image takes, stage by stage and end to end, against eager PyTorch and the hardware's own limits.

zimage-trt, DiffSynth, DiffSynth through torch.compile and diffusers generate the same images in one process, with the
same weights and the same number of forward passes. At each size and batch everybody generates a first image, in this
order, and then they take turns in it. How far apart their first images are is printed, so that nobody times the
wrong thing. Who is not installed, or fails, leaves a row that says so.

All times are the host's, between moments at which the device has nothing to do: `Pipeline.synchronize` for ours,
`torch.cuda.synchronize` for the others; a CPU is never behind.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, get_args

import torch

from benchmarks.harness import roofline, source
from benchmarks.harness.comparison import Comparison
from benchmarks.harness.device import Device
from benchmarks.harness.eager import STEPS, CompiledDiffSynth, DiffSynth, Diffusers
from benchmarks.harness.latency_report import plot, print_case, print_setup
from benchmarks.harness.measurement import Case, Figures
from benchmarks.harness.power import PowerMeter
from benchmarks.harness.report import finish, report
from benchmarks.harness.runner import Ours
from benchmarks.harness.source import Source
from engine.errors import InvalidRequest, PlanMismatch, UnsupportedShape
from engine.options import CudaGraphs, RuntimeOptions, sizes
from engine.plan.manifest import SEQUENCE_MULTIPLE, Manifest, padded, read, resolve
from engine.size import Size

PHRASE = "a small red circle to the left of a large blue square on a yellow background and"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS = "zimage-trt"
PEERS = ("diffsynth", "compiled", "diffusers")
SIZES = (1 / 2, 3 / 4, 1, 3 / 2, 2)  # times the side that the model generates by default
SMALL = 512  # pixels; models that generate less by default are asked for with shorter prompts
PROMPT_TOKENS = {True: 32, False: 128}  # padded tokens, by whether the model is small


def add_arguments(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--model", metavar="DIR", help="a checkpoint's folder, or a hub id")
    weights.add_argument(
        "--random-weights",
        choices=sorted(source.SIZES),
        help="of Z-Image-Turbo's or z-image-nano's size, on the device",
    )
    parser.add_argument("--engines", type=Path, metavar="DIR", help="plans of the same weights; without, peers only")
    parser.add_argument(
        "--peers", type=_peers, default=PEERS, metavar="NAME,...", help=f"of {', '.join(PEERS)}; default: all"
    )
    parser.add_argument(
        "--sizes", type=_sizes, metavar="WxH,...", help="default: 1/2, 3/4, 1, 3/2 and 2 times the model's own side"
    )
    parser.add_argument("--batches", type=_numbers, default=(1, 2, 4), metavar="N,...", help="default: 1,2,4")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        choices=range(SEQUENCE_MULTIPLE, 513, SEQUENCE_MULTIPLE),
        metavar="N",
        help="padded length of the prompts; default: 128, or 32 for a small model",
    )
    parser.add_argument(
        "--seconds", type=float, default=15, help="of each contestant at each size and batch; default: %(default)s"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: a GPU if there is one and the plans run on it"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the peers; default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of everybody; default: one per core")
    parser.add_argument(
        "--cuda-graphs", choices=get_args(CudaGraphs), default="auto", help="ours; default: %(default)s"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the last line of stdout there as well, case by case"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a plot of the medians end to end")


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for everybody. `manifest` is of the plans, if there are any."""

    device: Device
    dtype: torch.dtype
    threads: int
    weights: Source
    manifest: Manifest | None

    @classmethod
    def of(cls, args: argparse.Namespace, folder: Path) -> Self:
        """Raises PlanMismatch: the plans are not for the device, or not of the weights that the peers get."""
        device = Device(args.device or _default_device(args.engines))
        dtype = DTYPES[args.dtype or ("bf16" if device.is_gpu else "fp32")]
        weights = source.stored(args.model) if args.model else source.random(args.random_weights, device, folder)
        manifest = None if args.engines is None else read(resolve(args.engines), verify=False)
        if manifest is not None:
            if device.is_gpu == (manifest.target.flavor == "onnx"):
                raise PlanMismatch(f"{manifest.target.flavor} plans do not run on {device.name}; give another --device")
            if args.model:  # random weights have no files to compare; the images tell
                source.require_same_weights(weights.open(), manifest)
        return cls(device, dtype, args.threads or os.cpu_count() or 1, weights, manifest)


def run(args: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)  # the peers' libraries say much
    load_average = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        setup = Setup.of(args, Path(folder))
        torch.set_num_threads(setup.threads)
        rates = roofline.measure(setup.device, setup.dtype)
        arithmetic = roofline.Arithmetic.of(setup.weights.configs)
        with Comparison(setup.device, arithmetic, rates) as comparison, PowerMeter(setup.device) as power:
            enter(args, setup, comparison)
            cases, skipped = choose_cases(args, setup, comparison)
            figures: Figures = {
                "model": setup.weights.name,
                "device": setup.device.name,
                "dtype": str(setup.dtype).removeprefix("torch."),
                "threads": setup.threads,
                "load_average": load_average,
                "rates": asdict(rates),
                "runners": comparison.entries,
                "cases": [],
                "skipped": skipped,
            }
            print_setup(figures)
            for case in cases:
                figures["cases"].append(comparison.measure(case, args.seconds, power))
                print_case(figures["cases"][-1])
                if args.json:  # also for who stops it here
                    args.json.write_text(json.dumps(report("latency", figures)) + "\n", encoding="utf-8")
    if args.plot and figures["cases"]:
        plot(figures, args.plot)
    finish("latency", figures)


def enter(args: argparse.Namespace, setup: Setup, comparison: Comparison) -> None:
    """Loads everybody who takes part, ours first."""
    weights, dtype, device = setup.weights, setup.dtype, setup.device
    diffsynth = cache(lambda: DiffSynth(weights.open(), dtype, device))

    def diffusers() -> Diffusers:
        import_module("diffusers")  # if that is what is missing, it is what the row says
        return Diffusers(weights.open(), dtype, device)

    if setup.manifest is not None:
        options = RuntimeOptions(threads=setup.threads, cuda_graphs=args.cuda_graphs)
        comparison.enter(OURS, lambda: Ours(args.engines, options))
    if "diffsynth" in args.peers:
        comparison.enter(DiffSynth.name, diffsynth)
    if "compiled" in args.peers:
        comparison.enter(CompiledDiffSynth.name, lambda: diffsynth().compiled(), weights_of=DiffSynth.name)
    if "diffusers" in args.peers:
        comparison.enter(Diffusers.name, diffusers)


def choose_cases(args: argparse.Namespace, setup: Setup, comparison: Comparison) -> tuple[list[Case], list[str]]:
    """What is generated, and why the rest is not."""
    side, manifest = setup.weights.sample_size, setup.manifest
    prompt_tokens = args.prompt_tokens or PROMPT_TOKENS[side < SMALL]
    prompts = write_prompts(prompt_tokens, comparison.tokens) if comparison.runners else ("", "")
    cases, skipped = [], []
    for size in args.sizes or [Size(int(share * side), int(share * side)) for share in SIZES]:
        for batch in args.batches:
            case = Case(size, batch, STEPS, prompt_tokens, prompts)
            try:
                if manifest is not None:
                    manifest.profile_for(size, batch)
                cases.append(case)
            except UnsupportedShape as error:
                skipped.append(f"{case.title}: {error}")
    return cases, skipped


def write_prompts(prompt_tokens: int, tokens: Callable[[str], int]) -> tuple[str, str]:
    """Two different prompts of `prompt_tokens` padded tokens.

    Args:
        tokens: counts a prompt's tokens, the chat template's with them.

    Raises:
        InvalidRequest: the template alone is longer.
    """

    def fill(words: Iterator[str]) -> str:
        text = next(words)
        while padded(tokens(longer := f"{text} {next(words)}")) <= prompt_tokens:
            text = longer
        if (found := padded(tokens(text))) != prompt_tokens:
            raise InvalidRequest(
                f"prompts have {found} padded tokens at least, asked for were {prompt_tokens}", "prompt"
            )
        return text

    first, *others = PHRASE.split()
    return fill(cycle([first, *others])), fill(cycle([*others, first]))


def _default_device(engines: Path | None) -> str:
    needs_cpu = engines is not None and read(resolve(engines), verify=False).target.flavor == "onnx"
    return "cuda" if torch.cuda.is_available() and not needs_cpu else "cpu"


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    return names


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    found = sizes(text)
    if any(side % 16 for size in found for side in size):
        raise argparse.ArgumentTypeError(f"must be multiples of 16, got {text}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
