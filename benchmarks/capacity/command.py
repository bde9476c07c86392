"""The number of GPUs that a workload needs, by simulating the server's own policies.

Its times are measured, or follow from the roofline of a GPU; every table says which.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.capacity import tables
from benchmarks.capacity.arguments import add_arguments
from benchmarks.capacity.assessment import Assessment
from benchmarks.capacity.capacity_page import capacity_page
from benchmarks.capacity.deployment import Deployment
from benchmarks.capacity.devices.source import Source, read_report
from benchmarks.capacity.prediction import predict
from benchmarks.capacity.responses import SCENARIOS, Response
from benchmarks.harness.report import finish
from benchmarks.harness.text_table import text_table
from benchmarks.simulation.scenario import ClosedLoop, OpenLoop
from engine.errors import InvalidRequest

__all__ = ["add_arguments", "run"]

MISSED = 3  # exit status of a validation that fails
WARMUP_SHARE = 0.1  # of the simulated time


def run(args: argparse.Namespace) -> None:
    if args.validate:
        _validate(args)
        return
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
    _write(args.output, finish("capacity", figures))


def _validate(args: argparse.Namespace) -> None:
    (source,) = _sources(args)
    prediction = predict(read_report(args.validate), source, args.devices, args.max_batch, frozenset(args.change))
    tables.print_predictions(prediction)
    _write(args.output, finish("capacity", {"validation": prediction.figures(), "changes": args.change}))
    if not prediction.is_close:
        sys.exit(MISSED)


def _sources(args: argparse.Namespace) -> list[Source]:
    if args.service_times:
        return [Source.of_report(args.service_times)]
    if args.validate:
        raise InvalidRequest("--validate needs --service-times, a report of the machine that was measured", "validate")
    return [Source.of_gpu(gpu, args.reached, fp16_sums=args.fp16_sums) for gpu in args.gpu]


def _assess(args: argparse.Namespace, source: Source) -> Assessment:
    seconds = 60 * args.minutes
    deployment = Deployment(
        source=source,
        mix=args.mix,
        load=_load(args),
        per_host=args.gpus_per_host,
        max_batch=args.max_batch,
        seconds=seconds,
        warmup=WARMUP_SHARE * seconds,
        changes=frozenset(args.change),
    )
    least, most = args.gpus
    return Assessment.of(
        deployment,
        args.slo,
        least,
        most,
        seeds=tuple(range(1, args.seeds + 1)),
        price=args.price.get(source.name, args.price.get("")),
        load_seconds=args.load_seconds,
        quietest=args.quietest,
    )


def _load(args: argparse.Namespace) -> ClosedLoop | OpenLoop:
    if args.scenario and not args.rate:
        raise InvalidRequest(
            f"--scenario {args.scenario} needs --rate: users who wait for their images ask less of a slow server",
            "scenario",
        )
    if args.users:
        return ClosedLoop(args.users, args.think)
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


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report) + "\n", encoding="utf-8")
