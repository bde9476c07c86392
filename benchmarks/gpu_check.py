"""Answer every open question about a GPU with one command: numerics, kernels, speed, memory, the CUDA runtime.

Each part runs in a process of its own with a time limit, and its log is kept: a crash, a hang or a lost CUDA context
costs only that part. Parts that the time limit leaves no time for are named in the report, with the command that runs
them. Without TensorRT, the whole CUDA half is driven through kernels of its own. Without a GPU, the parts that can run
do, and the report names the others.
"""

import argparse
import faulthandler
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.findings import Device, Figures, Settings
from benchmarks.gpu.part_process import TIMED_OUT, run_here, run_in_process
from benchmarks.gpu.parts import FIRST, PARTS, Part
from benchmarks.gpu.report_text import counts, markdown, status
from benchmarks.harness.arguments import count, positive
from benchmarks.harness.report import Stopwatch, finish, report

LAYERS = 4
MINUTES = 5.0
LEAST_SECONDS = 10  # a part is not started with less time left
MINUTES_FOR_REST = 15  # of the command that the report gives for parts that have not run
WITHOUT_GPU = "it needs a GPU, and none was found"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="Folder for report.md, report.json, logs and plans")
    parser.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="Device to check; auto: a GPU if there is one (default)",
    )
    parser.add_argument(
        "--layers", type=count, default=LAYERS, help="Full-width transformer layers to check (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=positive,
        default=MINUTES,
        help="Time limit; the report names the parts that have not run by then, and the command that runs them "
        "(default: %(default)g)",
    )
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--only", metavar="PART,...", help=f"Run these parts only, into the earlier report: {names}")
    parser.add_argument("--quick", action="store_true", help="Tiny sizes and few runs, to see that every part works")
    # runs this part in this process
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--part-seconds", type=float, default=60.0, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    device: Device = "cpu" if args.device == "cpu" else "cuda"
    settings = Settings(args.folder, device, args.layers, args.quick)
    if args.part:
        [part] = [part for part in PARTS if part.name == args.part]
        faulthandler.enable()
        faulthandler.dump_traceback_later(max(1.0, args.part_seconds - 3))  # a hang shows its place in the log
        run_here(part, _for(part, settings))
        return
    selected = _select(args.only)
    args.folder.mkdir(parents=True, exist_ok=True)
    figures = _earlier(args.folder) if args.only is not None else {}
    for part, found in check(selected, settings, 60 * args.minutes, figures, wants_gpu=args.device == "cuda"):
        figures[part.name] = found
        write_report(args, figures)  # after each part: an interrupted run keeps its results
    print(counts(figures, len(not_run(figures))))
    if not_run(figures):
        print(f"run the rest with: {command_for_rest(args, figures)}")
    print(f"the report is {(args.folder / 'report.md').resolve()}")
    finish("gpu-check", figures)


def check(
    selected: tuple[Part, ...],
    settings: Settings,
    seconds: float,
    earlier: Figures,
    *,
    wants_gpu: bool = False,
    run_part: Callable[[Part, Settings, float], Figures] = run_in_process,
) -> Iterator[tuple[Part, Figures]]:
    """Run parts one after the other, and yield each with its figures. Parts without time left are not yielded.

    Args:
        selected: parts to run; `machine` is among them.
        seconds: time limit of all parts together.
        earlier: figures of parts that ran before in the same folder.
        wants_gpu: run the parts that need a GPU even if none is found, so that the report has their errors.
        run_part: runs a part within a limit and returns its figures.
    """
    watch, done = Stopwatch(), dict(earlier)
    waiting: set[str] = set()  # parts that the time limit left no time for, and those that need them
    for part in selected:
        own = part.seconds * max(1.0, seconds / (60 * MINUTES))
        limit = min(own, seconds - watch.seconds)
        reason = _reason_to_leave_out(part, settings, done, waiting, wants_gpu)
        if reason is not None:
            found: Figures = {"left_out": reason}
        elif limit < LEAST_SECONDS or waiting.intersection(part.needs):
            waiting.add(part.name)
            print(f"{part.name}: no time left", flush=True)
            continue
        else:
            print(f"{part.name}: {part.question} ...", flush=True)
            found = run_part(part, _for(part, settings), limit)
            if limit < own and found.get("failed", "").startswith(TIMED_OUT):
                waiting.add(part.name)
                found = _unfinished(found, limit)
        done[part.name] = found
        print(f"{part.name}: {status(found)}", flush=True)
        if part.name == FIRST:
            settings = _on_device(settings, found, wants_gpu)
        yield part, found


def _on_device(settings: Settings, machine: Figures, wants_gpu: bool) -> Settings:
    """Return the settings for the device that the part `machine` found, and say which it is."""
    if machine.get("gpu") or wants_gpu or settings.device == "cpu":
        return settings
    why = machine.get("no_gpu") or machine.get("failed", "")
    print(f"NO GPU FOUND ({why}): running what runs on a CPU", flush=True)
    return replace(settings, device="cpu")


def _unfinished(found: Figures, seconds: float) -> Figures:
    """Return the figures of a part that the command's time limit ended, not its own."""
    kept = {key: value for key, value in found.items() if key not in ("failed", "output")}
    return kept | {"unfinished": f"the time limit came after {seconds:.0f} s of it"}


def _reason_to_leave_out(
    part: Part, settings: Settings, done: dict[str, Figures], waiting: Set[str], wants_gpu: bool
) -> str | None:
    machine = done.get(FIRST, {})
    if part.needs_gpu and settings.device == "cpu" and not wants_gpu:
        return WITHOUT_GPU
    if part.needs_plans and settings.device == "cuda" and not machine.get("flavor"):
        return f"no TensorRT runs here: {machine.get('no_flavor', 'the part machine did not find out')}"
    for name in (name for name in part.needs if name not in waiting):
        found = done.get(name, {"unfinished": ""})
        for outcome, words in (("unfinished", "has not run"), ("left_out", "was left out"), ("failed", "failed")):
            if outcome in found:
                return f"it needs the part {name}, which {words}"
    return None


def _earlier(folder: Path) -> Figures:
    """Return the figures of an earlier run in the folder, for --only."""
    try:
        found: Figures = json.loads((folder / "report.json").read_text())["figures"]
    except (OSError, ValueError, KeyError):
        return {}
    return found


def _select(only: str | None) -> tuple[Part, ...]:
    if only is None:
        return PARTS
    wanted = {name.strip() for name in only.split(",")}
    names = [part.name for part in PARTS]
    if unknown := sorted(wanted - set(names)):
        sys.exit(f"zimage-bench: gpu-check has no part {', '.join(unknown)!r}; its parts are {', '.join(names)}")
    return tuple(part for part in PARTS if part.name in wanted or part.name == FIRST)


def _for(part: Part, settings: Settings) -> Settings:
    return replace(settings, variant=part.variant)


def not_run(figures: Figures) -> list[str]:
    """Return the parts that had no time to run or to finish, or were not selected, and those that need them."""
    names: list[str] = []
    for part in PARTS:
        found = figures.get(part.name, {"unfinished": ""})
        if "unfinished" in found or ("left_out" in found and set(names).intersection(part.needs)):
            names.append(part.name)
    return names


def command_for_rest(args: argparse.Namespace, figures: Figures) -> str:
    """Return the command that runs the parts that have not run, into the same report."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "zimage-bench" else "zimage-bench"
    words = [program, "gpu-check", str(args.folder)]
    words += ["--device", args.device] if args.device != "auto" else []
    words += ["--layers", str(args.layers)] if args.layers != LAYERS else []
    words += ["--quick"] if args.quick else []
    return shlex.join([*words, "--minutes", f"{MINUTES_FOR_REST}", "--only", ",".join(not_run(figures))])


def write_report(args: argparse.Namespace, figures: Figures) -> None:
    """Write report.json and report.md."""
    measured = report("gpu-check", {part.name: figures[part.name] for part in PARTS if part.name in figures})
    measured |= {"layers": args.layers, "quick": args.quick}
    measured |= {"not_run": not_run(figures), "run_the_rest": command_for_rest(args, figures)}
    (args.folder / "report.json").write_text(json.dumps(measured, indent=1) + "\n")
    (args.folder / "report.md").write_text(markdown(PARTS, measured))
