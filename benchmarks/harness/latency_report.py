"""The printed report of `zimage-bench latency`: the setup, two tables per case, and a plot. It measures nothing."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.runner import STAGES
from benchmarks.harness.text_table import text_table

Figures = Mapping[str, Any]

DIFFERENT_DB = 20.0  # PSNR below which two images have little in common
STAGE_TITLES = ("tokenize", "prompt", "each step", "decode", "copy", "PNG")

BUSY = 0.5  # load average above which other processes may disturb the measurement


def print_setup(figures: Figures) -> None:
    """Print the device's rates and the runners."""
    rates = figures["rates"]
    print(
        f"{figures['model']} on {figures['device']}, peers in {figures['dtype']}, {figures['threads']} CPU threads; "
        f"measured: matrix products {rates['flops'] / 1e12:.3g} TFLOP/s, copies {rates['bandwidth'] / 1e9:.0f} GB/s"
    )
    if figures["load_average"] > BUSY:
        print(f"  load average {figures['load_average']:.1f} before the run: other processes may have slowed it down")
    for name, entry in figures["runners"].items():
        size = f", {_gigabytes(entry['loaded_bytes'])}" if "loaded_bytes" in entry else ""
        print(f"  {name}: {entry['error'] if 'error' in entry else 'loaded in ' + _ms(entry['load_s']) + ' ms' + size}")
    if figures["device"] == "cpu":
        print("  no memory figures on a CPU: all runners share this process")
    for line in figures["skipped"]:
        print(f"skipped: {line}")
    print(flush=True)


def print_case(case: Figures) -> None:
    """Print two tables: end to end, and by stage next to the roofline."""
    generated = {name: row for name, row in case["runners"].items() if "error" not in row}
    print(f"{case['title']}, {case['steps']} steps, prompts of {case['prompt_tokens']} tokens; milliseconds")
    print(text_table(["end to end", *_WHOLE], [[name, *_whole(row)] for name, row in generated.items()]))
    rows = [[name, *(_percentiles(row["stages_s"][stage]) for stage in STAGES)] for name, row in generated.items()]
    rows.append(["roofline", *(_ms(case["roofline_s"].get(stage)) for stage in STAGES)])
    print(text_table(["p50 / p95 / p99", *STAGE_TITLES], rows))
    for name, row in case["runners"].items():
        if "error" in row:
            print(f"{name}: {row['error']}")
        elif row.get("psnr_db", DIFFERENT_DB) < DIFFERENT_DB:
            print(f"{name} generates another image: its weights differ, or these weights amplify rounding")
    print(flush=True)


_WHOLE = ("first", "p50", "p95", "p99", "runs", "an image", "of roofline", "as long", "PSNR", "memory", "power")


def _whole(row: Figures) -> list[str]:
    whole = row["end_to_end_s"]
    return [
        *map(_ms, (row["first_s"], whole["p50"], whole["p95"], whole["p99"])),
        str(whole["runs"]),
        _ms(row["per_image_s"]),
        f"{row['roofline_share']['end_to_end']:.0%}",
        f"{row['times_as_long']:.2f} x" if "times_as_long" in row else "1",
        f"{row['psnr_db']} dB" if "psnr_db" in row else "",
        _gigabytes(row["memory_bytes"]) if "memory_bytes" in row else "",
        f"{row['watts']:.0f} W" if "watts" in row else "",
    ]


def _percentiles(found: Figures) -> str:
    return " / ".join(_ms(found[name]) for name in ("p50", "p95", "p99") if found[name] is not None)


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def plot(figures: Figures, file: Path) -> None:
    """Plot the median seconds per image by size on a logarithmic axis, a panel per batch and a line per runner."""
    import matplotlib.pyplot as plt

    batches = sorted({case["batch"] for case in figures["cases"]})
    names = [name for name, entry in figures["runners"].items() if "error" not in entry]
    canvas, panels = plt.subplots(1, len(batches), sharey=True, squeeze=False, figsize=(1.5 + 4 * len(batches), 4))
    for axes, batch in zip(panels[0], batches, strict=True):
        cases = [case for case in figures["cases"] if case["batch"] == batch]
        places = range(len(cases))
        for name in names:
            rows = [case["runners"][name] for case in cases]
            axes.plot(places, [row.get("per_image_s", math.nan) for row in rows], marker="o", label=name)
        floors = [case["roofline_s"]["end_to_end"] / batch for case in cases]
        axes.plot(places, floors, "k--", marker="_", label="roofline")
        axes.set_xticks(places, [f"{case['width']}x{case['height']}" for case in cases])
        axes.set(title=f"batch {batch}", yscale="log", xlim=(-0.3, len(cases) - 0.7))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(axis="y", which="both", alpha=0.3)
    panels[0][0].set_ylabel("seconds per image, median")
    panels[0][0].legend(fontsize="small")
    canvas.tight_layout()
    canvas.savefig(file, dpi=120)
    plt.close(canvas)
