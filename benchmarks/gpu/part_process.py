"""A process for each part of `zimage-bench gpu-check`: a crash, a hang or a lost CUDA context costs only that part."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.findings import Figures, Findings, LeftOut, Settings, describe, figures_file, read_figures
from benchmarks.gpu.parts import Part
from benchmarks.harness.report import Stopwatch
from engine.module_command import module_command

TAIL = 2000  # characters of a failed part's log that the report keeps
TIMED_OUT = "timed out"
FAILED = "failed: "  # prefix of the log's last line after an exception
# Folders that libraries write to; HOME may be read-only.
CACHES = {
    "XDG_CACHE_HOME": "",
    "CUDA_CACHE_PATH": "cuda",
    "CUPY_CACHE_DIR": "cupy",
    "HF_HOME": "huggingface",
    "MODELSCOPE_CACHE": "modelscope",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}


def run_in_process(part: Part, settings: Settings, seconds: float, command: Sequence[str] = ()) -> Figures:
    """Run a part in a process of its own, with its output in logs/NAME.log.

    Args:
        command: command of the process; by default this one, with the part's name.

    Returns:
        The figures that it added; with "failed" and "output", the end of its log, if it did not end well.
    """
    log = log_file(settings.folder, part.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    figures_file(settings.folder, part.name).unlink(missing_ok=True)
    watch = Stopwatch()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command or _command(part, settings, seconds),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(settings),
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            failure = _reason(code, log) if code else None
        except subprocess.TimeoutExpired:
            failure = f"{TIMED_OUT} after {seconds:.0f} s"
        finally:
            _end(process)
    found = read_figures(settings.folder, part.name) | {"part_seconds": round(watch.seconds, 1)}
    if failure is not None:
        found |= {"failed": failure, "output": tail(log)}
    return found


def run_here(part: Part, settings: Settings) -> None:
    """Run a part in this process. It exits with status 1 and the reason in the last line if the part fails."""
    module, function = part.run.split(":")
    found = Findings(figures_file(settings.folder, part.name))
    try:
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(settings, found)
    except LeftOut as reason:
        found.add(left_out=str(reason))
    except Exception as error:  # noqa: BLE001  the process ends with it
        sys.stdout.flush()
        sys.excepthook(type(error), error, error.__traceback__)
        print(f"{FAILED}{describe(error)}".replace("\n", " "), file=sys.stderr, flush=True)
        sys.exit(1)


def log_file(folder: Path, part: str) -> Path:
    """Return the file of a part's output."""
    return folder / "logs" / f"{part}.log"


def tail(log: Path) -> str:
    """Return the end of a log."""
    return log.read_bytes()[-TAIL:].decode(errors="replace").strip() if log.is_file() else ""


def _command(part: Part, settings: Settings, seconds: float) -> list[str]:
    command = module_command("benchmarks.cli", "gpu-check", str(settings.folder), "--part", part.name)
    command += ["--device", settings.device, "--layers", str(settings.layers), "--part-seconds", f"{seconds:.0f}"]
    return [*command, "--quick"] if settings.quick else command


def _environment(settings: Settings) -> dict[str, str]:
    caches = (settings.folder / "cache").resolve()
    caches.mkdir(parents=True, exist_ok=True)
    found = {name: str(caches / folder) for name, folder in CACHES.items()}
    return {**os.environ, **found, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def _reason(code: int, log: Path) -> str:
    lines = [line for line in tail(log).splitlines() if line.strip()]
    last = lines[-1].removeprefix(FAILED) if lines else "no output"
    return f"killed by signal {-code} ({signal.Signals(-code).name}); {last}" if code < 0 else last


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a part and the processes that it started, such as compilers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
