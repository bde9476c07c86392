"""The reports of `zimage-bench latency` and `zimage-bench load`: the parts that capacity reads.

Other parts of a report are ignored. Every field is checked when a report is read, so that no reader meets a null.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from benchmarks.workload.mix import RequestKind
from engine.errors import InvalidRequest

Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
PerSecond = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

WANTED = "give one of zimage-bench latency (--json) or load (--output)"


class Gpu(msgspec.Struct, frozen=True):
    """A GPU of the machine that was measured."""

    name: str


class Hardware(msgspec.Struct, frozen=True):
    """The machine that was measured."""

    cpu: str
    gpus: tuple[Gpu, ...] = ()


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds of requests; None where there were too few."""

    p50: SecondsOrZero | None
    p95: SecondsOrZero | None
    mean: SecondsOrZero | None


class StageTime(msgspec.Struct, frozen=True):
    """Seconds of a stage of a batch."""

    p50: Seconds
    p95: Seconds | None = None


class Stages(msgspec.Struct, frozen=True):
    """The stages of a batch; `step` is one forward pass."""

    prompt_encoder: StageTime
    step: StageTime
    decode: StageTime
    copy: StageTime
    encode: StageTime


class Runner(msgspec.Struct, frozen=True):
    """A runner at one size and batch; it has stages, or else the reason why not."""

    stages_s: Stages | None = None


class Case(msgspec.Struct, frozen=True):
    """One size and batch, with its runners by name."""

    width: Count
    height: Count
    batch: Count
    steps: Count
    prompt_tokens: Count
    runners: dict[str, Runner]


class LatencyFigures(msgspec.Struct, frozen=True):
    """Figures of a latency report."""

    cases: tuple[Case, ...]


class LatencyReport(msgspec.Struct, frozen=True):
    """A report of `zimage-bench latency`."""

    figures: LatencyFigures
    hardware: Hardware


class Batches(msgspec.Struct, frozen=True):
    """Number of forward passes by batch."""

    counts: dict[Count, int] | None = None


class ServerFigures(msgspec.Struct, frozen=True):
    """Figures of zimage-serve in a rung; None where the server does not tell them.

    Attributes:
        pass_s: mean seconds of a forward pass by size and batch.
        stage_s: mean seconds of each stage of an image.
    """

    batch: Batches | None = None
    pass_s: dict[str, dict[Count, Seconds]] | None = None
    stage_s: dict[str, SecondsOrZero] | None = None


class Rung(msgspec.Struct, frozen=True):
    """A rung: constant users, or a constant rate."""

    seconds: Seconds
    warmup_s: SecondsOrZero
    images: int
    achieved_per_s: PerSecond
    latency_s: Percentiles
    queue_s: Percentiles
    drawing_s: Percentiles
    users: Count | None = None
    rate: Seconds | None = None
    server: ServerFigures | None = None

    def __post_init__(self) -> None:
        if (self.users is None) == (self.rate is None):
            raise ValueError("a rung has either users or a rate")
        if self.warmup_s >= self.seconds:
            raise ValueError(f"a warm-up is shorter than its rung of {self.seconds:g} s, got {self.warmup_s:g} s")

    @property
    def load(self) -> float:
        """Users, or requests per second."""
        return self.users or self.rate or 0.0

    @property
    def name(self) -> str:
        """The load in words."""
        if self.users is None:
            return f"{self.rate:g} per s"
        return f"{self.users} user{'s' if self.users != 1 else ''}"


class SizeBatching(msgspec.Struct, frozen=True):
    """The batch that a device uses at a size, written as in "128x128"."""

    size: str
    best_batch: Count


class DeviceBatching(msgspec.Struct, frozen=True):
    """The batches of a device, once they are measured."""

    state: str
    sizes: tuple[SizeBatching, ...] = ()


class Server(msgspec.Struct, frozen=True):
    """Settings that zimage-serve tells; other servers tell none of them."""

    num_inference_steps: Count | None = None
    default_guidance: SecondsOrZero | None = None
    batching: tuple[DeviceBatching, ...] | None = None


class Target(msgspec.Struct, frozen=True):
    """The server that was measured."""

    server: Server | None = None


class Workload(msgspec.Struct, frozen=True):
    """Kinds of requests, and the clients that sent them; `think_s` is None for arrivals."""

    mix: Annotated[tuple[RequestKind, ...], msgspec.Meta(min_length=1)]
    timeout_s: Seconds
    patience_s: SecondsOrZero
    think_s: SecondsOrZero | None = None


class LoadFigures(msgspec.Struct, frozen=True):
    """Figures of a load report."""

    target: Target
    workload: Workload
    rungs: Annotated[tuple[Rung, ...], msgspec.Meta(min_length=1)]


class LoadReport(msgspec.Struct, frozen=True):
    """A report of `zimage-bench load`."""

    figures: LoadFigures
    hardware: Hardware


AnyReport = TypeVar("AnyReport", LatencyReport, LoadReport)


def read_report(path: Path) -> LatencyReport | LoadReport:
    """Read a report: a JSON file, or saved output whose last line it is.

    Raises:
        InvalidRequest: the file is no report of latency or load, or a figure of it is missing.
    """
    match _json(path):
        case {"benchmark": "latency"} as found:
            return _report(path, found, LatencyReport)
        case {"benchmark": "load"} as found:
            return _report(path, found, LoadReport)
        case {"benchmark": str() as other}:
            raise _refused(f"{path} is a report of zimage-bench {other}, which does not measure service times")
        case _:
            raise _refused(f"{path} is JSON, but no report of zimage-bench")


def read_load_report(path: Path) -> LoadReport:
    """Read a report of `zimage-bench load`.

    Raises:
        InvalidRequest: the file is another one.
    """
    found = read_report(path)
    if not isinstance(found, LoadReport):
        raise InvalidRequest(f"{path} is a report of zimage-bench latency; give one of load (--output)", "validate")
    return found


def _json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8").strip()
        return json.loads(text if text.startswith("{") else text.rsplit("\n", 1)[-1])
    except OSError as error:
        raise _refused(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _refused(f"{path} is no JSON ({error})") from error


def _report(path: Path, found: dict[str, Any], kind: type[AnyReport]) -> AnyReport:
    try:
        return msgspec.convert(found, kind, str_keys=True)
    except msgspec.ValidationError as error:
        name = found["benchmark"]
        raise InvalidRequest(
            f"{path} is no report of zimage-bench {name} of this version: {error}; measure again", "service_times"
        ) from error


def _refused(what: str) -> InvalidRequest:
    return InvalidRequest(f"{what}; {WANTED}", "service_times")
