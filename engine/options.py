"""How plans are run, and the command-line options for it; imports nothing that takes time."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import msgspec

from engine.errors import InvalidRequest, ZImageError
from engine.size import Size

MAX_THREADS = 256

CudaGraphs = Literal["auto", "on", "off"]

ABOUT = {  # for whoever sets them
    "threads": "CPU threads, 0 for one per core",
    "profiles": "serve this profile, named as it was built; repeat it for more",
    "warm_up": "sizes whose first image is to be as fast as the next ones",
    "cuda_graphs": "TensorRT: auto keeps those that measurably gain, for TensorRT-RTX all",
    "offload": "TensorRT: prompt encoder and denoiser take turns in GPU memory; each new prompt costs seconds",
    "runtime_cache": "TensorRT-RTX: where it keeps kernels compiled for this GPU, else in the user's cache folder",
}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How `Pipeline.load` runs a plan directory.

    Attributes:
        threads: CPU threads per graph of ONNX Runtime; 0 for one per core.
        profiles: names of those to serve; none for all.
        warm_up: sizes that are prepared before anything is served.
        cuda_graphs: TensorRT's passes from CUDA graphs; "auto" keeps those that measurably gain.
        offload: the prompt encoder and the denoiser take turns in GPU memory.
        runtime_cache: folder for what TensorRT-RTX compiles on this GPU; None for the user's cache folder.
        slots: how many images may be between two of their steps; a guided one takes two slots.
        loras: name and file of each that requests may ask for; `zimage-lora` wrote them.
    """

    threads: int = 0
    profiles: tuple[str, ...] = ()
    warm_up: tuple[Size, ...] = ()
    cuda_graphs: CudaGraphs = "auto"
    offload: bool = False
    runtime_cache: Path | None = None
    slots: int = 2
    loras: tuple[tuple[str, Path], ...] = ()

    def __post_init__(self) -> None:
        if self.offload and self.warm_up:
            raise ZImageError("--offload gives up what --warm-up prepares; take one of them")

    def encode(self) -> str:
        """As JSON, for another process."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def decode(cls, text: str) -> "RuntimeOptions":
        """What `encode` wrote."""
        return msgspec.json.decode(text, type=cls, dec_hook=lambda kind, value: kind(value))

    @classmethod
    def of(cls, args: argparse.Namespace) -> "RuntimeOptions":
        """What `add_pipeline_arguments` parsed."""
        given = {field.name: getattr(args, field.name) for field in fields(cls) if field.name not in ("slots", "loras")}
        return cls(**given | {"profiles": tuple(args.profiles or ())})


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """`--engines`, and an option for each field of `RuntimeOptions` but `slots` and `loras`."""
    default = RuntimeOptions()
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help="what build-engines --output wrote")
    parser.add_argument(
        "--threads", type=_threads, default=default.threads, help=ABOUT["threads"] + "; default: %(default)s"
    )
    parser.add_argument(
        "--profile", dest="profiles", action="append", metavar="NAME", help=ABOUT["profiles"] + "; default: all"
    )
    parser.add_argument(
        "--warm-up",
        type=sizes,
        default=default.warm_up,
        metavar="WxH,...",
        help=ABOUT["warm_up"] + "; default: none",
    )
    parser.add_argument(
        "--cuda-graphs",
        choices=get_args(CudaGraphs),
        default=default.cuda_graphs,
        help=ABOUT["cuda_graphs"] + "; default: %(default)s",
    )
    parser.add_argument("--offload", action="store_true", help=ABOUT["offload"])
    parser.add_argument("--runtime-cache", type=Path, metavar="DIR", help=ABOUT["runtime_cache"])


def _threads(text: str) -> int:
    threads = int(text)
    if not 0 <= threads <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"must be between 0 and {MAX_THREADS}, got {threads}")
    return threads


def sizes(text: str) -> tuple[Size, ...]:
    """Read "WxH,...", for argparse."""
    try:
        return tuple(Size.parse(size.strip()) for size in text.split(","))
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from error
