"""Everything that only a GPU can answer, in one command: it goes on past what fails, and leaves a JSON and a report.

Each part is a process of its own with a time of its own, so that a crash, a hang or a lost CUDA context costs that part
alone. Parts hand plans on through a folder. On a machine without a GPU the same parts run ONNX Runtime.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import parts as gpu_parts
from benchmarks.harness.report import Stopwatch, finish, report

Figures = dict[str, Any]

RESULT = "result: "  # before the line of stdout that holds a part's figures
TAIL = 2000  # characters of a failed part's output that are kept


@dataclass(frozen=True, slots=True)
class Part:
    """One question.

    Attributes:
        seconds: after which it is given up.
        device: only asked where there is a GPU.
    """

    name: str
    question: str
    ask: Callable[[argparse.Namespace], Figures]
    seconds: int
    device: bool = False


PARTS = (
    Part("machine", "what is here: matrix rate, bandwidth, free memory", gpu_parts.machine, 60),
    Part("onnx", "does ONNX Runtime agree with PyTorch here", gpu_parts.runs_onnx, 120),
    Part("tensorrt", "does tensorrt run on this GPU", partial(gpu_parts.runs, way="tensorrt"), 120, device=True),
    Part(
        "rtx", "does tensorrt_rtx run a default plan on this GPU", partial(gpu_parts.runs, way="rtx"), 120, device=True
    ),
    Part(
        "rtx-sm80",
        "does it run a plan for compute capability 8.0",
        partial(gpu_parts.runs, way="rtx-sm80"),
        120,
        device=True,
    ),
    Part(
        "rtx-ampere-plus",
        "does it run a plan for Ampere and later",
        partial(gpu_parts.runs, way="rtx-ampere-plus"),
        120,
        device=True,
    ),
    Part("plans", "plans of the model, for the first flavor that runs", gpu_parts.plans, 300),
    Part("parity", "each graph against PyTorch in FP32, on the device", gpu_parts.parity, 120),
    Part("memory", "what loading and generating take, against what was planned", gpu_parts.memory, 120, device=True),
    Part("cuda-graphs", "what CUDA graphs gain", gpu_parts.cuda_graphs, 120, device=True),
    Part("refit", "a LoRA in and out: how long, and is it gone", gpu_parts.refit, 300),
    Part("latency", "stages and whole images, against eager and compiled PyTorch", gpu_parts.latency, 300),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="for plans, report.md and report.json")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--size", choices=("nano", "full"), default="nano", help="z-image-nano, or Z-Image-Turbo's sizes"
    )
    parser.add_argument(
        "--layers", type=int, default=30, help="of --size full, with random weights; default: %(default)s"
    )
    parser.add_argument("--only", default="", metavar="PART,...", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small images, few runs: to see whether it all works")
    parser.add_argument("--ask", help=argparse.SUPPRESS)  # a part, in its own process


def run(args: argparse.Namespace) -> None:
    if args.device == "auto":
        args.device = "cuda" if gpu_parts.has_gpu() else "cpu"
    if args.ask:
        [part] = [part for part in PARTS if part.name == args.ask]
        print(RESULT + json.dumps(part.ask(args)))
        return
    wanted = set(filter(None, args.only.split(",")))
    args.folder.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    for part in PARTS:
        if (wanted and part.name not in wanted) or (part.device and args.device == "cpu"):
            continue
        print(f"{part.name}: {part.question} ...", flush=True)
        figures[part.name] = _ask(part, args)
        print(f"{part.name}: {_summary(figures[part.name])}", flush=True)
        _write(args.folder, figures)  # after each: what is known stays known
    finish("gpu-check", figures)


def _ask(part: Part, args: argparse.Namespace) -> Figures:
    """What a part found, or what went wrong; with the seconds it took."""
    command = [sys.executable, "-m", "benchmarks.cli", "gpu-check", str(args.folder), "--ask", part.name]
    command += ["--device", args.device, "--size", args.size, "--layers", str(args.layers)]
    command += ["--quick"] if args.quick else []
    watch = Stopwatch()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=part.seconds)
        found = _read(done)
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        found = {"failed": f"given up after {part.seconds} s", "output": output[-TAIL:]}
    return found | {"part_seconds": round(watch.seconds, 1)}


def _read(done: "subprocess.CompletedProcess[str]") -> Figures:
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            found: Figures = json.loads(line.removeprefix(RESULT))
            return found
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else "no word"
    if done.returncode < 0:
        why = f"killed by signal {-done.returncode}; {why}"
    return {"failed": why, "output": (done.stdout + done.stderr)[-TAIL:]}


def _summary(found: Figures) -> str:
    return f"FAILED: {found['failed']}" if "failed" in found else f"{found['part_seconds']} s"


def _write(folder: Path, figures: Figures) -> None:
    measured = report("gpu-check", figures)
    (folder / "report.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "report.md").write_text(_markdown(measured))


def _markdown(measured: Figures) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in {**measured["hardware"], **measured["versions"]}.items())
    lines = ["# gpu-check", "", machine, ""]
    questions = {part.name: part.question for part in PARTS}
    for name, found in measured["figures"].items():
        lines += [f"## {name}: {questions[name]}", ""]
        if "failed" in found:
            lines += [f"**Failed**: {found['failed']}", "", "```", found["output"].strip(), "```", ""]
            continue
        lines += [f"- {key}: {_plain(value)}" for key, value in found.items()] + [""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    match value:
        case float():
            return f"{value:.4g}"
        case dict():
            return "; ".join(f"{key} {_plain(one)}" for key, one in value.items())
        case list():
            return ", ".join(_plain(one) for one in value)
    return str(value)
