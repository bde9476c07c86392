"""Benchmarks of zimage-trt. Every command prints its figures and ends with one line of JSON."""

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.command_line import add_version, one_line_errors, prepare

COMMANDS = {
    "full-size": "Trace a full-size graph from its config, or build some of its layers into an RTX plan.",
    "vram": "Tell which options fit Z-Image-Turbo into which graphics cards, from plans of a few full-size layers.",
    "http": "Measure overhead and throughput of zimage-serve against the engine alone; --soak adds many users.",
    "load": "Load a server with users or arrivals in rungs: latency, throughput, errors, wrong images, objectives.",
    "soak": "Mix clients of every kind with kills, pauses and clock jumps of zimage-serve, and account for all jobs.",
    "scaling": "Measure throughput of 1 to 8 workers with a timed stand-in engine, embedded and over brokers.",
    "fleet-faults": "Kill, cut and hang parts of a fleet under clients, singly or mixed, and account for every job.",
    "startup": "Measure the time from starting zimage-serve to its readiness, and the time of its first image.",
    "judge": "Score z-image-nano's images of held-out captions: colours, shapes, places, sizes, backgrounds.",
    "guidance": "Compare guided images with those of diffusers, and count the passes that both prompts share.",
    "parity": "Compare FP32, FP16 and BF16 of a checkpoint with float64: graphs, steps, images.",
    "verify": "Compare full-width graphs with DiffSynth as a build does, and measure time and peak memory.",
    "self-test": "Run the probes of plans on this device and compare them with FP32, as loading does.",
    "gpu-check": "Check a GPU in five minutes, and write a report: numerics, kernels, speed, memory, CUDA.",
    "latency": "Measure every stage against eager PyTorch, torch.compile and the roofline.",
    "capacity": "Find the GPUs that a workload needs, by simulating the server with measured or computed times.",
    "batching": "Measure a forward pass at every batch size and write the table that zimage-serve batches by.",
    "encode": "Measure the time and the file size of PNG, JPEG and WebP encoders.",
    "uploads": "Send thousands of hostile image files to the process that decodes uploads: outcomes, time, memory.",
    "lora-swap": "Measure the host's part of a LoRA swap, in seconds per GB of weights.",
    "peers": "Compare images of the same prompt and seed with those of diffusers and DiffSynth.",
}

EXAMPLE = "Example: zimage-bench startup --engines out/engines; COMMAND --help has its options."


def main(argv: list[str] | None = None) -> None:
    """Run `zimage-bench`. The last line of stdout is JSON; an error exits with status 1 and one line on stderr."""
    with one_line_errors("zimage-bench"):
        _run(sys.argv[1:] if argv is None else argv)


def _run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("zimage-bench", description=__doc__, epilog=EXAMPLE)
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        prepare(command)
        if name in arguments[:1]:  # imports this benchmark only: some need torch, others must not load it
            _module(name).add_arguments(command)
    args = parser.parse_args(arguments)
    with _named_if_missing(args.command):
        _module(args.command).run(args)


def _module(command: str) -> Any:
    """Import a benchmark's module; a benchmark that is a package has its command in `command.py`."""
    with _named_if_missing(command):
        module = importlib.import_module(f"benchmarks.{command.replace('-', '_')}")
        return importlib.import_module(f"{module.__name__}.command") if hasattr(module, "__path__") else module


@contextmanager
def _named_if_missing(command: str) -> Iterator[None]:
    """Exit with the name of a library that is not installed, and the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(
            f"zimage-bench: {command} needs {error.name}, which is not installed; "
            "in the checkout: pip install -e '.[bench,export,nano,test]'"
        )


if __name__ == "__main__":
    main()
