"""The part `kernels`: the kernels that attention and the matrix products of a plan got, with their times.

Names and times come from CUPTI through torch's profiler, which sees the launches of every library in the process.
Polygraphy's inspector writes the plan's layers beside the log.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Figures, Findings, Settings, describe
from benchmarks.gpu.model.checked_model import flavor, main_side, plan_directory
from benchmarks.gpu.part_process import log_file
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import read
from engine.request import ImageRequest

STEPS = 4
MOST = 25  # kernels in the report
INSPECT_SECONDS = 25  # less than the part's limit: kernels count more
ATTENTION, PRODUCT = ("fmha", "mha", "attention", "flash"), ("gemm", "xmma", "cutlass", "nvjet", "matmul", "cublas")


def kernels(settings: Settings, found: Findings) -> None:
    """Profile a few steps of the largest size up to 1024; then inspect the plan."""
    directory = plan_directory(settings)
    try:
        rows = profile_steps(directory, main_side(settings))
        found.add(kernels=rows)
        found.answer(_summary(rows))
    finally:
        found.add(layers=inspect(directory, settings))


def profile_steps(directory: Path, side: int) -> dict[str, Figures]:
    """Return calls and milliseconds of the kernels that take most of the time, by name."""
    from torch.profiler import ProfilerActivity, profile

    request = ImageRequest("a red circle", side, side, num_inference_steps=STEPS)
    with Pipeline.load(directory, RuntimeOptions(cuda_graphs="off"), verify=False) as pipeline:
        for _ in range(2):
            pipeline.generate(request)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            pipeline.generate(request)
            pipeline.synchronize()
    return kernel_rows(profiled.key_averages())


def kernel_rows(events: Any) -> dict[str, Figures]:
    """Return the longest kernels of a profile, with their share of the time."""
    timed = [(event.key, event.count, _device_us(event) / 1e3) for event in events]
    timed = sorted((row for row in timed if row[2] > 0), key=lambda row: -row[2])
    whole = sum(milliseconds for *_, milliseconds in timed)
    return {
        name: {"calls": count, "ms": milliseconds, "share": milliseconds / whole}
        for name, count, milliseconds in timed[:MOST]
    }


def inspect(directory: Path, settings: Settings) -> str:
    """Write the denoiser's layers with Polygraphy's inspector; return the file's path, or why there is none."""
    plan = directory / read(directory, verify=False).graphs["denoiser"].file
    command = [sys.executable, "-c", "from polygraphy.tools import main; import sys; sys.exit(main())"]
    command += ["inspect", "model", str(plan), "--model-type", "engine", "--show", "layers", "attrs"]
    package = "1" if flavor(settings) == "rtx" else "0"
    file = log_file(settings.folder, f"layers-{settings.variant}")
    try:
        with file.open("wb") as output:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": package},
                timeout=INSPECT_SECONDS,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return describe(error)
    return f"{file.name}" if done.returncode == 0 else f"polygraphy exits with {done.returncode}, see {file.name}"


def _device_us(event: Any) -> float:
    """Return microseconds on the device; torch 2.4 has renamed the field."""
    for name in ("self_device_time_total", "self_cuda_time_total"):
        if hasattr(event, name):
            return float(getattr(event, name))
    return 0.0


def _summary(rows: dict[str, Figures]) -> str:
    parts = []
    for kind, words in (("attention", ATTENTION), ("products", PRODUCT)):
        names = [name for name in rows if any(word in name.lower() for word in words)]
        share = sum(rows[name]["share"] for name in names)
        parts.append(f"{kind} {share:.0%} of the time: {', '.join(n[:80] for n in names[:2]) or 'none recognised'}")
    return "; ".join(parts)
