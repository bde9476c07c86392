"""`zimage-bench`: one subcommand per benchmark."""

import argparse
import importlib
import sys
from typing import Any

from engine.errors import ZImageError

COMMANDS = {
    "full-size": "trace the real 6 B and 4 B models from configs, build full-size layers into RTX plans",
    "http": "what HTTP costs: one request, 32 clients against the bare engine, and many users for minutes",
    "startup": "seconds from starting zimage-serve to its first answer",
    "judge": "does z-image-nano generate what held-out prompts say: colours, shapes, places; a contact sheet",
    "parity": "FP32, FP16 and BF16 of a checkpoint against float64: graphs, steps, images",
    "gpu-check": "all that only a GPU can answer: which flavors run, parity, memory, CUDA graphs, refit, latency",
    "latency": "first image, p50, p95, p99 of every stage against eager PyTorch, torch.compile and the roofline",
    "batching": "what a forward pass takes with one, two, ... images at once; zimage-serve batches by the result",
    "encode": "milliseconds and bytes of PNG, JPEG and WebP encoders",
    "peers": "the same prompt and seed through diffusers and DiffSynth: how far apart are the images",
}


def main(argv: list[str] | None = None) -> None:
    """Entry point; the last line of stdout is JSON."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser("zimage-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in arguments[:1]:  # importing one benchmark, not all: some need torch, some must not load it
            _module(name).add_arguments(command)
    args = parser.parse_args(arguments)
    try:
        _module(args.command).run(args)
    except ZImageError as error:
        sys.exit(f"zimage-bench: {error}")


def _module(command: str) -> Any:
    return importlib.import_module(f"benchmarks.{command.replace('-', '_')}")


if __name__ == "__main__":
    main()
