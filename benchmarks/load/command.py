"""Load zimage-serve, or another server with OpenAI's endpoints, with users or arrivals, rung by rung, and report.

Ends with status 0 if every rung meets the objectives, 3 if one misses them, 1 after an error, 130 after Ctrl-C. Ctrl-C
ends the current rung and still reports what was measured.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness.arguments import count, positive, positive_or_zero
from benchmarks.harness.report import report
from benchmarks.harness.server_process import ServerProcess
from benchmarks.load.client.endpoints import ENDPOINTS
from benchmarks.load.load_run import LoadRun, run_load
from benchmarks.load.plan import CASES, MAX_IN_FLIGHT, PATIENCE, TIMEOUT, LoadOptions, Rung
from benchmarks.reports.comparison import read_report
from benchmarks.reports.load_report import load_page
from benchmarks.reports.load_table import load_csv, load_table
from benchmarks.reports.rungs import Report, load_name
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.mix import Mix
from benchmarks.workload.objective import Objective
from benchmarks.workload.scenarios import MIXES, SCENARIOS, Scenario
from engine.command_line import INTERRUPTED, user_path
from engine.files import require_writable
from engine.module_command import module_command
from engine.options import HELP

MISSED = 3  # exit status
MAX_WARMUP = 10.0  # seconds, unless --warmup says otherwise
UI_PORT = 8089  # Locust's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", type=_url, help="Address of a running server, such as http://localhost:8000")
    where.add_argument("--engines", type=Path, metavar="DIR", help=f"{HELP['engines']}: start zimage-serve with them")
    parser.add_argument("--serve-options", metavar="TEXT", help="With --engines: its options, as in '--queue 40'")
    parser.add_argument("--blocking", action="store_true", help="With --engines: start a plain blocking server instead")
    _add_load(parser)
    _add_requests(parser)
    _add_reports(parser)


def run(args: argparse.Namespace) -> None:
    if find_spec("locust") is None:  # looked for here: importing it would change this process's sockets
        raise ModuleNotFoundError("No module named 'locust'", name="locust")
    for path in filter(None, (args.output, args.csv, args.html)):  # now, and not after an hour of load
        require_writable(path)
    try:
        options, objectives = _options(args), Objective.parse_all(args.slo) if args.slo else ()
        others: list[Report] = [read_report(user_path(other)) for other in args.compare if not _is_url(other)]
        with _server(args) as (url, pid):
            done = run_load(url, args.name or _name(url), options, objectives, pid, _print_rung)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"zimage-bench: {error}")
    found = report("load", done.figures)
    status: int | str = _status(done)
    try:
        others.extend(_load_others(args, options, done))  # keeps those before a failure
    except (RuntimeError, ValueError) as error:  # the load before it is still reported
        status = f"zimage-bench: {error}"
    _write(found, others, args)
    sys.exit(status)


def _load_others(args: argparse.Namespace, options: LoadOptions, before: LoadRun) -> Iterator[Report]:
    """Give the same load to the servers of --compare, unless Ctrl-C has ended the load before it."""
    for url in filter(_is_url, args.compare):
        if before.is_interrupted:
            return
        print(f"the same load on {url}", flush=True)
        before = run_load(url, _name(url), options, (), None, _print_rung)
        yield report("load", before.figures)


def _add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how many requests are sent and when."""
    load = parser.add_argument_group("load")
    scenarios = "; ".join(map(_in_words, SCENARIOS.values()))
    load.add_argument("--scenario", choices=SCENARIOS, help=f"Users and length of the rungs by name ({scenarios})")
    load.add_argument("--users", type=_counts, metavar="N,...", help="Users of each rung (default: those of ladder)")
    load.add_argument(
        "--rate",
        type=_rates,
        metavar="R,...",
        help="Arrivals per second of each rung, whether or not requests before them are answered",
    )
    load.add_argument("--minutes", type=positive, help="Length of a rung (default: the scenario's, or 5)")
    load.add_argument(
        "--think", type=positive_or_zero, metavar="SECONDS", help="Mean pause of a user, exponential (default: 1)"
    )
    load.add_argument(
        "--warmup",
        type=positive_or_zero,
        metavar="SECONDS",
        help="Start of each rung that the figures leave out (default: a tenth, at most 10)",
    )
    load.add_argument(
        "--max-in-flight",
        type=count,
        default=MAX_IN_FLIGHT,
        help="With --rate: unanswered requests beyond which further ones are failures (default: %(default)s)",
    )
    load.add_argument("--seed", type=int, default=0, help="Seed of all random choices (default: %(default)s)")
    load.add_argument(
        "--ui", type=count, nargs="?", const=UI_PORT, metavar="PORT", help=f"Show Locust's page (port {UI_PORT})"
    )


def _add_requests(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is asked for."""
    requests = parser.add_argument_group("requests")
    mix = requests.add_mutually_exclusive_group()
    mix.add_argument(
        "--mix", default=MIXES[0], metavar="NAME|FILE", help=f"{', '.join(MIXES)}, or a TOML or JSON file of kinds"
    )
    mix.add_argument("--sizes", metavar="WxH,...", help="Sizes of the images, in equal shares")
    requests.add_argument("--endpoint", choices=ENDPOINTS, default="images", help="Default: %(default)s")
    requests.add_argument(
        "--server",
        choices=("auto", "zimage", "openai"),
        default="auto",
        help="openai: SGLang, vLLM-Omni and others with OpenAI's endpoints (default: ask the server)",
    )
    requests.add_argument("--api-key", help="Sent as a bearer token, to servers of --compare too")
    requests.add_argument(
        "--timeout",
        type=positive,
        default=TIMEOUT,
        metavar="SECONDS",
        help="Longest wait for an answer (default: %(default)g)",
    )
    requests.add_argument(
        "--patience",
        type=positive_or_zero,
        default=PATIENCE,
        metavar="SECONDS",
        help="Time for which clients try again after 429 and 503, as Retry-After says (default: %(default)g; 0: never)",
    )
    requests.add_argument(
        "--cases", type=count, default=CASES, help="Prompts and seeds of each kind (default: %(default)s)"
    )
    requests.add_argument(
        "--no-check-images",
        action="store_true",
        help="Do not compare images with those that each case gives when it is drawn alone, before the load",
    )


def _add_reports(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is measured and written."""
    reports = parser.add_argument_group("reports")
    reports.add_argument("--slo", metavar="NAME=BOUND,...", help="Objectives, such as p95=5s,success=99.9,rate=2")
    reports.add_argument("--pid", type=count, help="Process of the server on this machine, to measure its memory")
    reports.add_argument("--name", help="Name of the server in reports (default: its address)")
    reports.add_argument("--output", type=Path, metavar="FILE", help="Write the report as JSON")
    reports.add_argument("--csv", type=Path, metavar="FILE", help="Write a row per rung")
    reports.add_argument("--html", type=Path, metavar="FILE", help="Write a page with charts, in one file")
    reports.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="FILE|URL",
        help="Report beside an earlier one, or beside another server under the same load; repeatable",
    )


def _options(args: argparse.Namespace) -> LoadOptions:
    """Return the load of the arguments. Raises ValueError: they contradict each other."""
    if args.rate is not None and (args.users is not None or args.scenario is not None):
        raise ValueError("--rate is an open loop; it goes with neither --users nor --scenario")
    if args.scenario is not None and args.users is not None:
        raise ValueError("--scenario has its own numbers of users; leave out --users")
    if (args.blocking or args.serve_options) and args.engines is None:
        raise ValueError("--blocking and --serve-options need --engines")
    if args.blocking and args.serve_options:
        raise ValueError("--serve-options are zimage-serve's; leave out --blocking")
    scenario = SCENARIOS[args.scenario or "ladder"]
    mix: Mix | str = args.mix
    if args.sizes is not None:
        mix = Mix.sizes(args.sizes)
    elif args.mix not in MIXES:
        mix = Mix.read(user_path(args.mix))
    return LoadOptions(
        mix=mix,
        rungs=_rungs(args, scenario),
        scenario=args.scenario,
        endpoint=args.endpoint,
        server=args.server,
        api_key=args.api_key,
        patience=args.patience,
        timeout=args.timeout,
        cases=args.cases,
        checks_images=not args.no_check_images,
        max_in_flight=args.max_in_flight,
        seed=args.seed,
        ui_port=args.ui,
    )


def _rungs(args: argparse.Namespace, scenario: Scenario) -> tuple[Rung, ...]:
    seconds = 60 * (args.minutes or scenario.minutes)
    warmup = min(seconds / 10, MAX_WARMUP) if args.warmup is None else args.warmup
    if warmup >= seconds:
        raise ValueError(f"--warmup must be shorter than a rung of {seconds:g} s, got {warmup:g} s")
    if args.rate is not None:
        return tuple(Rung(rate=rate, seconds=seconds, warmup=warmup) for rate in args.rate)
    think = scenario.think if args.think is None else args.think
    users = args.users or scenario.users
    return tuple(Rung(users=number, seconds=seconds, warmup=warmup, think=think) for number in users)


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Yield the address and the process of the server; start one if there are plans instead of an address."""
    if args.url is not None:
        yield args.url, args.pid
        return
    with ServerProcess(args.engines, command=_serve_command(args)) as server:
        yield server.url, server.processes["server"].pid


def _serve_command(args: argparse.Namespace) -> list[str]:
    if args.blocking:
        return module_command("benchmarks.load.blocking_server", "--engines", str(args.engines))
    options = ["--engines", str(args.engines), "--port", "0", "--drain-seconds", "0"]
    return module_command("server.cli", *options, *shlex.split(args.serve_options or ""))


def _print_rung(rung: Rung, figures: RungFigures) -> None:
    p95 = "" if figures.latency_s.p95 is None else f", p95 {figures.latency_s.p95:.2f} s"
    success = "no answers" if figures.success_percent is None else f"{figures.success_percent:.1f}% successful"
    rate = f"{figures.achieved_per_s:.2f} images/s"
    print(f"{load_name(rung.users, rung.rate)}: {figures.requests} requests, {success}, {rate}{p95}", flush=True)


def _write(found: dict[str, Any], others: Sequence[Report], args: argparse.Namespace) -> None:
    """Print the report, whose last line is its JSON, and write it in every form that is asked for."""
    print(load_table(found))
    text = json.dumps(found)
    print(text, flush=True)  # before the files: a full disk must not lose it
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.csv is not None:
        args.csv.write_text(load_csv(found), encoding="utf-8")
    if args.html is not None:
        args.html.write_text(load_page(found, others), encoding="utf-8")


def _status(done: LoadRun) -> int:
    if done.is_interrupted:
        return INTERRUPTED
    return 0 if done.is_met else MISSED


def _name(url: str) -> str:
    return urlsplit(url).netloc


def _in_words(scenario: Scenario) -> str:
    """Return a scenario as words, such as "soak: 6 times 10 users for 10 minutes"."""
    times = Counter(scenario.users)
    users = ", ".join(f"{count} times {number}" if count > 1 else str(number) for number, count in times.items())
    return f"{scenario.name}: {users} user{'s' * (users != '1')} for {scenario.minutes:g} minutes"


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _url(text: str) -> str:
    if not _is_url(text):
        raise argparse.ArgumentTypeError(f"must begin with http:// or https://, got {text!r}")
    return text.rstrip("/")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _rates(text: str) -> tuple[float, ...]:
    return tuple(positive(part) for part in text.split(","))
