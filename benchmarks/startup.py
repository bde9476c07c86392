"""Time until zimage-serve is ready, and time of its first image, with real processes and real requests."""

import argparse
import json
import math
import statistics
import subprocess
import urllib.request
from pathlib import Path

from benchmarks.harness.arguments import count
from benchmarks.harness.report import Stopwatch, finish
from engine.module_command import module_command
from engine.options import HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", type=Path, required=True, metavar="DIR", help=HELP["engines"])
    parser.add_argument("--runs", type=count, default=20, help="Runs after one warm-up (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    measure(args.engines, "warm-up")
    runs = [measure(args.engines, "a red circle") for _ in range(args.runs)]
    ready, first = (sorted(column) for column in zip(*runs, strict=True))
    figures = {
        "runs": args.runs,
        "ready_median_s": round(statistics.median(ready), 2),
        "ready_p95_s": round(ready[math.ceil(0.95 * len(ready)) - 1], 2),
        "first_image_median_s": round(statistics.median(first), 2),
    }
    print(f"ready after {figures['ready_median_s']} s (median of {args.runs}), p95 {figures['ready_p95_s']} s")
    finish("startup", figures)


def measure(engines: Path, prompt: str) -> tuple[float, float]:
    """Measure one server process: seconds until its ready line, and seconds of the first request."""
    command = module_command("server.cli", "--engines", str(engines), "--port", "0", "--drain-seconds", "0")
    watch = Stopwatch()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            ready = watch.seconds
            if "ready on " not in line:
                raise RuntimeError(f"zimage-serve did not start; run it by hand to see why: {' '.join(command)}")
            url = line.split("ready on ")[1].split()[0]
            watch = Stopwatch()
            _generate(url, prompt)
            return ready, watch.seconds
        finally:
            server.terminate()


def _generate(url: str, prompt: str) -> None:
    body = json.dumps({"prompt": prompt, "seed": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/images/generations", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        assert json.load(response)["data"][0]["b64_json"]
