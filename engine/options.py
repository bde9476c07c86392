"""Options for running plans, and their command-line arguments. Its imports are fast."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

import msgspec

from engine.errors import InvalidRequest, ZImageError
from engine.plan.manifest import Flavor
from engine.size import Size

MAX_THREADS = 256
SLOTS = 12  # slots for many images at once; a guided image takes two. Enough for three batches of four
ONLY_FOR: dict[str, tuple[Flavor, ...]] = {  # options that have no effect on plans of other flavors
    "threads": ("onnx",),
    "cuda_graphs": ("tensorrt", "rtx"),
    "offload": ("tensorrt", "rtx"),
    "self_test": ("tensorrt", "rtx"),
    "runtime_cache": ("rtx",),
}

CudaGraphs = Literal["auto", "on", "off"]
Batching = Literal["auto", "off"]

HELP = {  # help texts of the options, also for zimage-serve
    "engines": "Folder written by build-engines --output",
    "threads": "CPU threads per graph; 0 uses one per core",
    "profiles": "Profile to load, by the name that it was built with; repeat for more",
    "warm_up": "Sizes to prepare at the start, so that their first image is as fast as the next",
    "cuda_graphs": "TensorRT: use of CUDA graphs; auto keeps those that are measurably faster, TensorRT-RTX keeps all",
    "offload": "TensorRT: keep only one of prompt encoder and denoiser in GPU memory; each new prompt costs seconds",
    "self_test": "TensorRT: compare what this GPU computes with FP32 before anything is generated",
    "image_input": "Load the VAE encoder, which images as inputs need, if the plans have one",
    "batching": "Images that share forward passes: auto for batches that gain on this device, which is measured once "
    "when there is nothing to generate; off for one image after the other",
    "runtime_cache": "TensorRT-RTX: folder for kernels compiled for this GPU (default: the user's cache folder)",
}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Options of `Pipeline.load`.

    Attributes:
        threads: CPU threads per graph of ONNX Runtime; 0 for one per core.
        profiles: names of the profiles to load; empty for all.
        warm_up: sizes to prepare before anything is served.
        cuda_graphs: use of CUDA graphs by TensorRT; "auto" keeps those that measurably gain.
        offload: True to load the prompt encoder and the denoiser into GPU memory one at a time.
        self_test: True to compare the plans' probes with FP32 while loading; ONNX Runtime is not tested.
        runtime_cache: folder for kernels that TensorRT-RTX compiles on this GPU; None for the user's cache folder.
        slots: slots for images between two of their steps; a guided image takes two.
        image_input: True to load the graphs that images as inputs need, if the plans have them.
        loras: names of the LoRAs that requests may use, each with the file that `zimage-lora` wrote.
        cpus: CPUs that a worker process may use; empty for all that its server may use.
        lora_versions: `engine.files.version` of these files by name. A file of another version is refused; one that is
            not listed must keep the version that is read first.
        batching: "auto" for passes that images share by the device's batch table; "off" for one image at a time.
    """

    threads: int = 0
    profiles: tuple[str, ...] = ()
    warm_up: tuple[Size, ...] = ()
    cuda_graphs: CudaGraphs = "auto"
    offload: bool = False
    self_test: bool = True
    runtime_cache: Path | None = None
    slots: int = 2
    image_input: bool = True
    loras: tuple[tuple[str, Path], ...] = ()
    lora_versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    cpus: tuple[int, ...] = ()
    batching: Batching = "auto"

    def __post_init__(self) -> None:
        if self.offload and self.warm_up:
            raise ZImageError("--offload unloads what --warm-up prepares; use only one of them")

    def without_effect(self, flavor: Flavor) -> list[str]:
        """Return the options that were changed from their defaults and have no effect on plans of this flavor."""
        default, named = RuntimeOptions(), []
        for name, flavors in ONLY_FOR.items():
            value = getattr(self, name)
            if value != getattr(default, name) and flavor not in flavors:
                named.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
        return named

    def encode(self) -> str:
        """Return the options as JSON, for another process."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def decode(cls, text: str) -> "RuntimeOptions":
        """Read the JSON that `encode` returned."""
        return msgspec.json.decode(text, type=cls, dec_hook=lambda kind, value: kind(value))

    @classmethod
    def of(cls, args: argparse.Namespace) -> "RuntimeOptions":
        """Return the options that `add_pipeline_arguments` or `add_backend_arguments` parsed."""
        given = {each.name: getattr(args, each.name) for each in fields(cls) if hasattr(args, each.name)}
        return cls(**given | {"profiles": tuple(args.profiles or ())})


def add_pipeline_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the arguments of `add_backend_arguments`, `--warm-up` and `--self-test`."""
    add_backend_arguments(parser)
    default = RuntimeOptions()
    parser.add_argument(
        "--warm-up",
        type=sizes,
        default=default.warm_up,
        metavar="WxH,...",
        help=HELP["warm_up"] + " (default: none)",
    )
    parser.add_argument(
        "--self-test",
        action=argparse.BooleanOptionalAction,
        default=default.self_test,
        help=HELP["self_test"] + " (default: on)",
    )


def add_backend_arguments(parser: argparse._ActionsContainer) -> None:
    """Add `--engines` and the options of `RuntimeOptions` that `load_backend` uses."""
    default = RuntimeOptions()
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help=HELP["engines"])
    parser.add_argument(
        "--threads",
        type=_threads,
        default=default.threads,
        metavar="N",
        help=HELP["threads"] + " (default: %(default)s)",
    )
    parser.add_argument(
        "--profile", dest="profiles", action="append", metavar="NAME", help=HELP["profiles"] + " (default: all)"
    )
    parser.add_argument(
        "--cuda-graphs",
        choices=get_args(CudaGraphs),
        default=default.cuda_graphs,
        help=HELP["cuda_graphs"] + " (default: %(default)s)",
    )
    parser.add_argument("--offload", action="store_true", help=HELP["offload"])
    parser.add_argument("--runtime-cache", type=Path, metavar="DIR", help=HELP["runtime_cache"])


def _threads(text: str) -> int:
    try:
        threads = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if not 0 <= threads <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be between 0 and {MAX_THREADS}, got {threads}")
    return threads


def sizes(text: str) -> tuple[Size, ...]:
    """Read "WxH,...", for argparse."""
    try:
        return tuple(Size.parse(size.strip()) for size in text.split(","))
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from error
