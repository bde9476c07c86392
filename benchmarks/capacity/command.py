"""The number of GPUs that a workload needs, by simulating the server's own policies.

Its times are measured, or follow from the roofline of a GPU; every table says which. Ends with status 2 if arguments or
reports are wrong, and with 3 if a prediction misses its measurement.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.capacity import tables
from benchmarks.capacity.arguments import SIZES, THINK, add_arguments, check
from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.capacity_page import capacity_page
from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.devices.published import REACHED
from benchmarks.capacity.devices.reports import read_load_report
from benchmarks.capacity.devices.source import Source
from benchmarks.capacity.prediction import predict
from benchmarks.capacity.responses import SCENARIOS, Response
from benchmarks.harness.report import finish
from benchmarks.harness.text_table import text_table
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop
from benchmarks.workload.mix import Mix
from engine.errors import InvalidRequest
from engine.files import require_writable

__all__ = ["add_arguments", "run"]

WRONG, MISSED = 2, 3  # exit status after wrong arguments, as argparse has it, and of a validation that fails
WARMUP_SHARE = 0.1  # of the simulated time


def run(args: argparse.Namespace) -> None:
    try:
        check(args)
        for path in filter(None, (args.output, args.html)):  # now, and not after minutes of simulation
            require_writable(path)
        figures = _validate(args) if args.validate else _size(args)
    except InvalidRequest as error:
        print(f"zimage-bench: {error}", file=sys.stderr)
        sys.exit(WRONG)
    report = finish("capacity", figures)
    if args.output:
        args.output.write_text(json.dumps(report) + "\n", encoding="utf-8")
    if args.validate and not figures["validation"]["is_close"]:
        sys.exit(MISSED)


def _size(args: argparse.Namespace) -> dict[str, Any]:
    assessments = [_assess(args, source) for source in _sources(args)]
    tables.print_bill(assessments)
    figures: dict[str, Any] = {
        "workload": tables.workload(assessments[0]),
        "objectives": [objective.text for objective in args.slo],
        "devices": [assessment.figures() for assessment in assessments],
    }
    responses = _respond(args, assessments)
    if responses:
        figures["responses"] = {name: [each.figures() for each in found] for name, found in responses.items()}
    if args.html:
        args.html.write_text(capacity_page(assessments, responses), encoding="utf-8")
        print(f"wrote {args.html}")
    return figures


def _validate(args: argparse.Namespace) -> dict[str, Any]:
    (source,) = _sources(args)
    prediction = predict(read_load_report(args.validate), source, args.devices, args.max_batch, frozenset(args.change))
    tables.print_predictions(prediction)
    return {"validation": prediction.figures(), "changes": args.change}


def _sources(args: argparse.Namespace) -> list[Source]:
    if args.service_times:
        return [Source.of_report(args.service_times)]
    if args.validate:
        raise InvalidRequest("--validate needs --service-times, a report of the machine that was measured", "validate")
    return [Source.of_gpu(gpu, args.reached or REACHED, fp16_sums=args.fp16_sums) for gpu in args.gpu]


def _assess(args: argparse.Namespace, source: Source) -> Assessment:
    seconds = 60 * args.minutes
    deployment = Deployment(
        source=source,
        mix=args.mix or Mix.sizes(SIZES),
        load=_load(args),
        per_host=args.gpus_per_host,
        max_batch=args.max_batch,
        seconds=seconds,
        warmup=WARMUP_SHARE * seconds,
        changes=frozenset(args.change),
    )
    (least, most), prices = args.gpus, args.price or {}
    return Assessment.of(
        deployment,
        args.slo,
        least,
        most,
        seeds=tuple(range(1, args.seeds + 1)),
        price=prices.get(source.name, prices.get("")),
        load_seconds=args.load_seconds,
        quietest=args.quietest,
    )


def _load(args: argparse.Namespace) -> ClosedLoop | OpenLoop:
    if args.users:
        return ClosedLoop(args.users, THINK if args.think is None else args.think)
    if args.rate:
        return OpenLoop(args.rate)
    raise InvalidRequest("give the load as --users, who wait for their images, or as --rate of requests", "users")


def _respond(args: argparse.Namespace, assessments: Sequence[Assessment]) -> dict[str, list[Response]]:
    """Simulate the situation for every kind of GPU that suffices, and print it."""
    found = {}
    for assessment in assessments:
        if args.scenario and assessment.settings is not None:
            name = f"{assessment.deployment.source.name}, {args.scenario}"
            found[name] = list(SCENARIOS[args.scenario](assessment, args.load_seconds, args.quietest))
            print(text_table(*tables.responses(name, found[name])))
    return found
