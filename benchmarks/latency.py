"""Latency of images, by stage and end to end, against eager PyTorch, torch.compile and the hardware's roofline.

zimage-trt, DiffSynth, DiffSynth through torch.compile and diffusers generate the same images in one process, with the
same weights and the same number of forward passes. At each size and batch every runner generates a first image, in this
order; then the runners alternate in rounds. The report gives the distance between their first images, which shows that
all of them do the same work. A runner that is not installed, or fails, gets a row with the reason.

All times are the host's, between moments at which the device is idle (`Pipeline.synchronize` for zimage-trt,
`torch.cuda.synchronize` for the peers; a CPU needs neither).
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
from benchmarks.harness.arguments import count_or_zero, positive
from benchmarks.harness.arithmetic import Arithmetic
from benchmarks.harness.comparison import Comparison
from benchmarks.harness.device import Device
from benchmarks.harness.eager import STEPS, CompiledDiffSynth, DiffSynth, Diffusers
from benchmarks.harness.latency_report import plot, print_case, print_setup
from benchmarks.harness.measurement import Case, Figures
from benchmarks.harness.power import PowerMeter
from benchmarks.harness.report import finish, report
from benchmarks.harness.runner import PlanRunner
from benchmarks.harness.source import Source
from engine.errors import InvalidRequest, PlanMismatch, UnsupportedShape
from engine.options import CudaGraphs, RuntimeOptions, sizes
from engine.plan.directory import read, resolve
from engine.plan.manifest import SEQUENCE_MULTIPLE, Manifest, padded
from engine.size import Size

PHRASE = "a small red circle to the left of a large blue square on a yellow background and"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAN_RUNNER = "zimage-trt"
PEERS = ("diffsynth", "compiled", "diffusers")
SIZES = (1 / 2, 3 / 4, 1, 3 / 2, 2)  # multiples of the model's default side
SMALL = 512  # pixels; models with a smaller default side get shorter prompts
PROMPT_TOKENS = {True: 32, False: 128}  # padded tokens; the key is True for a small model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--model", metavar="DIR", help="Folder or hub id of the checkpoint")
    weights.add_argument(
        "--random-weights",
        choices=sorted(source.SIZES),
        help="Random weights in the size of Z-Image-Turbo (full) or z-image-nano (nano)",
    )
    parser.add_argument(
        "--engines", type=Path, metavar="DIR", help="Plans of the same weights (default: measure the peers only)"
    )
    parser.add_argument(
        "--peers",
        type=_peers,
        default=PEERS,
        metavar="NAME,...",
        help=f"Peers to measure, of {', '.join(PEERS)} (default: all)",
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        metavar="WxH,...",
        help="Image sizes (default: squares of 1/2, 3/4, 1, 3/2 and 2 times the model's default side)",
    )
    parser.add_argument(
        "--batches", type=_numbers, default=(1, 2, 4), metavar="N,...", help="Batch sizes (default: 1,2,4)"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        choices=range(SEQUENCE_MULTIPLE, 513, SEQUENCE_MULTIPLE),
        metavar="N",
        help="Padded length of the prompts (default: 128, or 32 for a small model)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=15,
        help="Seconds per runner at each size and batch (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="Device of all runners (default: the GPU if there is one and the plans run on it)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="Dtype of the peers (default: bf16 on a GPU, fp32 on a CPU)")
    parser.add_argument(
        "--threads",
        type=count_or_zero,
        default=0,
        help="CPU threads of every runner (default: one per core)",
    )
    parser.add_argument(
        "--cuda-graphs",
        choices=get_args(CudaGraphs),
        default="auto",
        help="CUDA graphs of zimage-trt (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the JSON report here, after each case")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="Write a plot of the end-to-end medians")


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings that all runners share.

    Attributes:
        dtype: dtype of the peers.
        threads: CPU threads.
        weights: weights of all runners.
        manifest: manifest of the plans, if there are any.
    """

    device: Device
    dtype: torch.dtype
    threads: int
    weights: Source
    manifest: Manifest | None

    @classmethod
    def of(cls, args: argparse.Namespace, folder: Path) -> Self:
        """Make the setup of a command line.

        Args:
            folder: folder for files of random weights.

        Raises:
            PlanMismatch: the plans are not for the device, or not of the peers' weights.
        """
        device = Device(args.device or _default_device(args.engines))
        dtype = DTYPES[args.dtype or ("bf16" if device.is_gpu else "fp32")]
        weights = source.stored(args.model) if args.model else source.random(args.random_weights, device, folder)
        manifest = None if args.engines is None else read(resolve(args.engines), verify=False)
        if manifest is not None:
            if device.is_gpu == (manifest.target.flavor == "onnx"):
                raise PlanMismatch(f"{manifest.target.flavor} plans do not run on {device.name}; give another --device")
            if args.model:  # random weights have no files to compare; the report compares the images
                source.require_same_weights(weights.open(), manifest)
        return cls(device, dtype, args.threads or os.cpu_count() or 1, weights, manifest)


def run(args: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)  # the peers' libraries log a lot
    load_average = os.getloadavg()[0]
    with TemporaryDirectory() as folder:
        setup = Setup.of(args, Path(folder))
        torch.set_num_threads(setup.threads)
        rates = roofline.measure(setup.device, setup.dtype)
        arithmetic = Arithmetic.of(setup.weights.configs)
        with Comparison(setup.device, arithmetic, rates) as comparison, PowerMeter(setup.device) as power:
            add_runners(args, setup, comparison)
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
                if args.json:  # after each case: an interrupted run keeps its results
                    args.json.write_text(json.dumps(report("latency", figures)) + "\n", encoding="utf-8")
    if args.plot and figures["cases"]:
        plot(figures, args.plot)
    finish("latency", figures)


def add_runners(args: argparse.Namespace, setup: Setup, comparison: Comparison) -> None:
    """Load the runners, zimage-trt first."""
    weights, dtype, device = setup.weights, setup.dtype, setup.device
    diffsynth = cache(lambda: DiffSynth(weights.open(), dtype, device))

    def diffusers() -> Diffusers:
        import_module("diffusers")  # fails first, so that the row names the missing package
        return Diffusers(weights.open(), dtype, device)

    if setup.manifest is not None:
        options = RuntimeOptions(threads=setup.threads, cuda_graphs=args.cuda_graphs)
        comparison.add(PLAN_RUNNER, lambda: PlanRunner(args.engines, options))
    if "diffsynth" in args.peers:
        comparison.add(DiffSynth.name, diffsynth)
    if "compiled" in args.peers:
        comparison.add(CompiledDiffSynth.name, lambda: diffsynth().compiled(), weights_of=DiffSynth.name)
    if "diffusers" in args.peers:
        comparison.add(Diffusers.name, diffusers)


def choose_cases(args: argparse.Namespace, setup: Setup, comparison: Comparison) -> tuple[list[Case], list[str]]:
    """Return the cases to measure, and a line with the reason for each that the plans do not support."""
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
    """Write two different prompts of `prompt_tokens` padded tokens.

    Args:
        tokens: function that counts a prompt's tokens, chat template included.

    Raises:
        InvalidRequest: the chat template alone is longer.
    """

    def fill(words: Iterator[str]) -> str:
        text = next(words)
        while padded(tokens(longer := f"{text} {next(words)}")) <= prompt_tokens:
            text = longer
        if (found := padded(tokens(text))) != prompt_tokens:
            raise InvalidRequest(
                f"prompts have at least {found} padded tokens, got --prompt-tokens {prompt_tokens}", "prompt"
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
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    return names


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    found = sizes(text)
    if any(side % 16 for size in found for side in size):
        raise argparse.ArgumentTypeError(f"sides must be multiples of 16, got {text}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
