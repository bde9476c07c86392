"""Run every check that needs a GPU in one command, and write a report even where some of them fail.

Each part runs in a process of its own with a time limit: a crash, a hang or a lost CUDA context costs only that part.
Parts share plans through a folder. On a machine without a GPU the same parts run ONNX Runtime.
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

from benchmarks import latency
from benchmarks.gpu import parts as gpu_parts
from benchmarks.gpu.plans import checkpoint_folder
from benchmarks.harness.report import Stopwatch, finish, report

Figures = dict[str, Any]

RESULT = "result: "  # prefix of the stdout line that holds a part's figures
TAIL = 2000  # characters of a failed part's output that the report keeps


@dataclass(frozen=True, slots=True)
class Part:
    """One check.

    Attributes:
        question: the question that the check answers, for progress lines and the report.
        run: the check itself.
        seconds: time limit.
        needs_gpu: True if the part is skipped on a CPU.
    """

    name: str
    question: str
    run: Callable[[argparse.Namespace], Figures]
    seconds: int
    needs_gpu: bool = False


def measure_latency(args: argparse.Namespace) -> Figures:
    """Run `zimage-bench latency` over the plans and the peers, or over the peers alone if no plans run on the GPU."""
    file = args.folder / "latency.json"
    command = ["--device", args.device, "--json", str(file), "--plot", str(args.folder / "latency.png")]
    if args.device == "cuda" and gpu_parts.working_variant(args) == "onnx":
        command += ["--random-weights", args.size]
    else:
        command += ["--model", str(checkpoint_folder(args)), "--engines", str(gpu_parts.plans(args))]
    command += ["--sizes", "64", "--batches", "1", "--seconds", "1"] if args.quick else ["--seconds", "4"]
    parser = argparse.ArgumentParser()
    latency.add_arguments(parser)
    latency.run(parser.parse_args(command))
    found: Figures = json.loads(file.read_text())["figures"]
    return found


PARTS = (
    Part("machine", "matrix rate, bandwidth and free memory of this machine", gpu_parts.machine, 60),
    Part("onnx", "does ONNX Runtime agree with PyTorch here", gpu_parts.run_onnx, 120),
    *(
        Part(variant, question, partial(gpu_parts.run_variant, variant=variant), 120, needs_gpu=True)
        for variant, question in (
            ("tensorrt", "does tensorrt run on this GPU"),
            ("rtx", "does tensorrt_rtx run a default plan on this GPU"),
            ("rtx-sm80", "does tensorrt_rtx run a plan for compute capability 8.0"),
            ("rtx-ampere-plus", "does tensorrt_rtx run a plan for Ampere and later"),
        )
    ),
    Part("plans", "build the model's plans with the first flavor that runs", gpu_parts.build_plans, 300),
    Part("parity", "each graph against PyTorch in FP32 on the device", gpu_parts.parity, 120),
    Part("memory", "GPU memory of loading and generating against the plan", gpu_parts.memory, 120, needs_gpu=True),
    Part("cuda-graphs", "a step without and with CUDA graphs", gpu_parts.cuda_graphs, 120, needs_gpu=True),
    Part("refit", "time to swap a LoRA in and out, and is the image restored", gpu_parts.refit, 300),
    Part("latency", "stages and whole images against eager and compiled PyTorch", measure_latency, 300),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="Folder for plans, report.md and report.json")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="Device to check; auto: a GPU if there is one (default)",
    )
    parser.add_argument(
        "--size",
        choices=("nano", "full"),
        default="nano",
        help="Weights: nano, those of z-image-nano; full, random ones in Z-Image-Turbo's size (default: %(default)s)",
    )
    parser.add_argument(
        "--layers", type=int, default=30, help="Transformer layers with --size full (default: %(default)s)"
    )
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--only", default="", metavar="PART,...", help=f"Run these parts only: {names}")
    parser.add_argument(
        "--quick", action="store_true", help="Small images and few runs, to check that every part works"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)  # run this part in this process


def run(args: argparse.Namespace) -> None:
    if args.device == "auto":
        args.device = "cuda" if gpu_parts.has_gpu() else "cpu"
    if args.part:
        [part] = [part for part in PARTS if part.name == args.part]
        print(RESULT + json.dumps(part.run(args)))
        return
    wanted = set(filter(None, args.only.split(",")))
    args.folder.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    for part in PARTS:
        if (wanted and part.name not in wanted) or (part.needs_gpu and args.device == "cpu"):
            continue
        print(f"{part.name}: {part.question} ...", flush=True)
        figures[part.name] = _run_part(part, args)
        print(f"{part.name}: {_summary(figures[part.name])}", flush=True)
        _write(args.folder, figures)  # after each part: an interrupted run keeps its results
    finish("gpu-check", figures)


def _run_part(part: Part, args: argparse.Namespace) -> Figures:
    """Run a part in a process of its own; return its figures or its failure, and its seconds."""
    command = [sys.executable, "-m", "benchmarks.cli", "gpu-check", str(args.folder), "--part", part.name]
    command += ["--device", args.device, "--size", args.size, "--layers", str(args.layers)]
    command += ["--quick"] if args.quick else []
    watch = Stopwatch()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=part.seconds)
        found = _read(done)
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        found = {"failed": f"timed out after {part.seconds} s", "output": output[-TAIL:]}
    return found | {"part_seconds": round(watch.seconds, 1)}


def _read(done: "subprocess.CompletedProcess[str]") -> Figures:
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            found: Figures = json.loads(line.removeprefix(RESULT))
            return found
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else "no error output"
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
