"""Arguments of `zimage-bench capacity`: devices, workload, objectives, and what is bought."""

import argparse
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from benchmarks.capacity.deployment import MAX_BATCH, PER_HOST
from benchmarks.capacity.devices.gpus import GPUS, Gpu, gpu
from benchmarks.capacity.devices.published import REACHED
from benchmarks.capacity.responses import SCENARIOS
from benchmarks.harness.arguments import count, positive, positive_or_zero
from benchmarks.simulation.scenario import Change
from benchmarks.workload.mix import Mix
from benchmarks.workload.objective import Objective
from engine.command_line import user_path
from engine.errors import InvalidRequest

ALL = "all"
MINUTES = 10.0
THINK = 1.0  # seconds
SIZES = "1024x1024"
OBJECTIVES = "p95=10s,success=99.9"
EPILOG = (
    "Example: zimage-bench capacity --gpu L4,H100 --users 50 --think 10 --size 1024x1024 --slo p95=10s,success=99.9 "
    "--price L4=0.80,H100=3.00 --html capacity.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    devices = parser.add_argument_group("devices").add_mutually_exclusive_group(required=True)
    devices.add_argument(
        "--gpu", type=gpus, metavar="NAME,...", help=f"Rooflines of {', '.join(g.name for g in GPUS)}, or all of them"
    )
    devices.add_argument(
        "--service-times", type=Path, metavar="JSON", help="Report of zimage-bench latency or load on your device"
    )
    roofline = parser.add_argument_group("rooflines")
    roofline.add_argument(
        "--reached",
        type=share,
        metavar="SHARE",
        help=f"Share of the roofline that a GPU reaches (default: {REACHED}, the median of published measurements)",
    )
    roofline.add_argument(
        "--fp16-sums", action="store_true", help="Plans of build-engines --accumulate fp16, faster on RTX cards"
    )
    _add_workload(parser)
    _add_search(parser)
    _add_purchase(parser)
    _add_validation(parser)
    parser.add_argument("--output", type=Path, metavar="JSON", help="Also write the report here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="Write a page with plots; takes more simulations")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    workload = parser.add_argument_group("workload")
    load = workload.add_mutually_exclusive_group()
    load.add_argument("--users", type=count, help="Users who wait for their image and think")
    load.add_argument("--rate", type=positive, help="Requests per second that arrive whatever becomes of others")
    workload.add_argument(
        "--think", type=positive_or_zero, metavar="SECONDS", help=f"Mean pause of a user (default: {THINK:g})"
    )
    requests = workload.add_mutually_exclusive_group()
    requests.add_argument(
        "--size", type=mix_of_sizes, dest="mix", metavar="WxH,...", help=f"Sizes in equal shares (default: {SIZES})"
    )
    requests.add_argument(
        "--mix", type=mix_of_file, metavar="FILE", help="Kinds of requests, as zimage-bench load takes them"
    )
    workload.add_argument(
        "--scenario",
        choices=SCENARIOS,
        help="Also simulate a day, a burst of ten times the load, or the loss of a quarter of the hosts",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("search")
    search.add_argument(
        "--slo",
        type=objectives,
        default=objectives(OBJECTIVES),
        metavar="NAME=BOUND,...",
        help=f"Objectives (default: {OBJECTIVES})",
    )
    search.add_argument(
        "--gpus",
        type=bounds,
        default=(1, 64),
        metavar="LEAST..MOST",
        help="Numbers of GPUs to consider (default: 1..64)",
    )
    search.add_argument(
        "--gpus-per-host",
        type=count,
        default=PER_HOST,
        metavar="N",
        help="GPUs of a machine: up to so many are one zimage-serve, more a fleet (default: %(default)s)",
    )
    search.add_argument(
        "--minutes", type=positive, default=MINUTES, help="Simulated time of each simulation (default: %(default)s)"
    )
    search.add_argument(
        "--seeds", type=count, default=3, help="Simulations that must meet the objectives (default: %(default)s)"
    )
    search.add_argument(
        "--max-batch", type=count, default=MAX_BATCH, help="Largest batch of the plans (default: %(default)s)"
    )


def _add_purchase(parser: argparse.ArgumentParser) -> None:
    purchase = parser.add_argument_group("costs and scaling")
    purchase.add_argument("--price", type=prices, metavar="PRICE", help="Of a GPU for an hour, or NAME=PRICE,...")
    purchase.add_argument(
        "--load-seconds",
        type=positive,
        default=180.0,
        metavar="SECONDS",
        help="From the decision for a GPU to its first job: boot, image, plans (default: %(default)s, assumed)",
    )
    purchase.add_argument(
        "--quietest",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="Load of the quietest time, for the least GPUs of an autoscaler and for a day (default: %(default)s)",
    )


def _add_validation(parser: argparse.ArgumentParser) -> None:
    validation = parser.add_argument_group("validation")
    validation.add_argument(
        "--validate", type=Path, metavar="JSON", help="Predict this report of zimage-bench load; misses exit with 3"
    )
    validation.add_argument(
        "--devices", type=count, help="Devices of the server that was measured (default: those that its report names)"
    )
    validation.add_argument(
        "--change",
        choices=get_args(Change),
        action="append",
        default=[],
        help="Simulate another policy, to see predictions miss",
    )


def check(args: argparse.Namespace) -> None:
    """Check that every option has an effect beside the others.

    Raises:
        InvalidRequest: one has none.
    """
    workload = {"--users": args.users, "--rate": args.rate, "--think": args.think, "--size or --mix": args.mix}
    answer = {"--price": args.price, "--scenario": args.scenario, "--html": args.html}
    for option, is_given, others in (
        ("--validate, whose report has the workload", args.validate, workload | answer),
        ("--service-times", args.service_times, {"--reached": args.reached, "--fp16-sums": args.fp16_sums or None}),
        ("--rate", args.rate, {"--think": args.think}),
    ):
        without_effect = [name for name, value in others.items() if value is not None]
        if is_given and without_effect:
            raise InvalidRequest(f"{without_effect[0]} has no effect with {option}; leave one of them out", "arguments")
    if args.devices and not args.validate:
        raise InvalidRequest("--devices has no effect without --validate; for numbers of GPUs give --gpus", "devices")
    if args.scenario and not args.rate:
        raise InvalidRequest(
            f"--scenario {args.scenario} needs --rate: users who wait for their images ask less of a slow server",
            "scenario",
        )
    _check_prices(args.price or {}, [gpu.name for gpu in args.gpu or ()])


def _check_prices(priced: Collection[str], chosen: Collection[str]) -> None:
    others = [name for name in priced if name and name not in chosen]
    if others and chosen:
        raise InvalidRequest(
            f"--price names {others[0]}, which is not among --gpu {','.join(chosen)}; leave it out", "price"
        )
    if others:
        raise InvalidRequest(f"--price {others[0]}=... needs --gpu; with --service-times give one number", "price")


def gpus(text: str) -> tuple[Gpu, ...]:
    """Read names of different GPUs with commas between them, or "all"."""
    found = GPUS if text == ALL else tuple(map(named_gpu, text.split(",")))
    if repeated := [each.name for each, count in Counter(found).items() if count > 1]:
        raise argparse.ArgumentTypeError(f"must be different GPUs, got {repeated[0]} twice")
    return found


def named_gpu(text: str) -> Gpu:
    """Read the name of a GPU."""
    try:
        return gpu(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def share(text: str) -> float:
    """Read a share above 0 and up to 1."""
    found = positive(text)
    if found > 1:
        raise argparse.ArgumentTypeError(f"must be a share of at most 1, got {text}")
    return found


def bounds(text: str) -> tuple[int, int]:
    """Read "LEAST..MOST", or one number for both."""
    least, dots, most = text.partition("..")
    found = count(least), count(most if dots else least)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"must be LEAST..MOST, such as 1..64, got {text!r}")
    return found


def prices(text: str) -> dict[str, float]:
    """Read one price for all devices, under the name "", or NAME=PRICE with commas between them."""
    if "=" not in text:
        return {"": positive(text)}
    found = [part.partition("=") for part in text.split(",")]
    return {named_gpu(name).name: positive(price) for name, _, price in found}


def objectives(text: str) -> tuple[Objective, ...]:
    """Read objectives with commas between them."""
    try:
        return Objective.parse_all(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def mix_of_sizes(text: str) -> Mix:
    """Read sizes with commas between them."""
    try:
        return Mix.sizes(text)
    except (InvalidRequest, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def mix_of_file(text: str) -> Mix:
    """Read a mix from a file."""
    try:
        return Mix.read(user_path(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text} cannot be read ({error.strerror}); give a TOML or JSON file"
        ) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
