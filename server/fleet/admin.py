"""Command line of `zimage-admin`: the worker hosts and the jobs of a fleet, for its operators."""

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.command_line import add_version, one_line_errors, prepare
from engine.errors import ZImageError

if TYPE_CHECKING:
    from server.fleet.operations import FleetOperations, Record

EXAMPLES = """\
examples:
  zimage-admin --database postgresql://zimage@db/zimage workers
  zimage-admin drain gpu7 --wait
  zimage-admin jobs --dead
  zimage-admin retry job_0123456789abcdef0123456789abcdef

ZIMAGE_DATABASE, ZIMAGE_BROKER and ZIMAGE_FLEET give the defaults of --database, --broker and --fleet. Prefer them for
URLs with passwords, since ps shows arguments.
"""
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,200}")  # of a job or a worker host
WIDTH = 60  # characters of a column

WORKER_COLUMNS = ("id", "host", "state", "model", "plan_id", "version", "devices", "jobs", "seconds_since_seen")
JOB_COLUMNS = ("id", "state", "priority", "model", "plan_id", "lora", "images", "attempts", "worker", "age", "error")
QUEUE_COLUMNS = ("model", "priority", "plan_id", "lora", "image_input", "waiting", "held", "oldest", "hosts")


class ExtraMissing(ZImageError):
    """A package of the extra `fleet` is not installed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `zimage-admin`. Errors exit with status 1 and one line on stderr."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not (args.database or "").startswith(("postgresql://", "postgres://")):
        parser.error("--database or ZIMAGE_DATABASE must be the URL of the fleet's database, postgresql://...")
    with one_line_errors("zimage-admin"), _operations(args) as operations:
        args.run(operations, args)


def _operations(args: argparse.Namespace) -> "FleetOperations":
    try:
        from server.fleet.operations import FleetOperations

        return FleetOperations(args.database, args.broker or None, args.fleet)
    except ModuleNotFoundError as error:
        raise ExtraMissing(f"{error.name} is not installed; in the checkout: pip install '.[fleet]'") from error


def _workers(operations: "FleetOperations", args: argparse.Namespace) -> None:
    _show(operations.workers(), WORKER_COLUMNS, args)


def _queue(operations: "FleetOperations", args: argparse.Namespace) -> None:
    _show(operations.queue(), QUEUE_COLUMNS, args)


def _jobs(operations: "FleetOperations", args: argparse.Namespace) -> None:
    _show(operations.jobs(dead=args.dead), JOB_COLUMNS, args)


def _drain(operations: "FleetOperations", args: argparse.Namespace) -> None:
    drained = operations.drain(args.worker)
    if args.wait:
        drained["jobs"] = operations.wait_until_drained(
            drained["id"], args.timeout, lambda jobs: print(f"{drained['id']}: {jobs} jobs left", file=sys.stderr)
        )
    _show([drained], ("id", "host", "jobs"), args)


def _cancel(operations: "FleetOperations", args: argparse.Namespace) -> None:
    _show([operations.cancel(job) for job in args.job], ("id", "state"), args)


def _retry(operations: "FleetOperations", args: argparse.Namespace) -> None:
    _show([operations.retry(job) for job in args.job], JOB_COLUMNS, args)


def _drop(operations: "FleetOperations", args: argparse.Namespace) -> None:
    _show([operations.drop(job) for job in args.job], ("id", "state"), args)


def _show(records: "Sequence[Record]", columns: Sequence[str], args: argparse.Namespace) -> None:
    """Print records as a table, or as JSON, one object per line."""
    if args.json:
        for record in records:
            print(json.dumps(record, default=str))
        return
    rows = [[column.upper().replace("_", " ") for column in columns]]
    rows += [[_cell(record, column) for column in columns] for record in records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(record: "Record", column: str) -> str:
    """Return a value for people, on one line and without control characters."""
    value: Any = record.get(column)
    match column, value:
        case "devices", list() | tuple():
            value = f"{sum(device['is_ready'] for device in value)} of {len(value)} ready"
        case "age", _:
            value = f"{max(0.0, time.time() - record['created']):.0f} s"
        case "error", dict():
            value = f"{value['code']}: {value['message']}"
        case _, None:
            value = "-"
        case _, bool():
            value = "yes" if value else "no"
        case _, float():
            value = f"{value:.1f} s"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "zimage-admin",
        description="Look after a fleet: worker hosts, queue and jobs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    prepare(parser)
    parser.add_argument(
        "--database", metavar="URL", default=os.environ.get("ZIMAGE_DATABASE"), help="Database of the fleet"
    )
    parser.add_argument(
        "--broker",
        metavar="URL",
        default=os.environ.get("ZIMAGE_BROKER"),
        help="Broker of the fleet, so that worker hosts react at once (default: they react within seconds)",
    )
    parser.add_argument(
        "--fleet",
        metavar="NAME",
        default=os.environ.get("ZIMAGE_FLEET") or "zimage",
        help="Name of the fleet, as its processes have it (default: zimage)",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON, one object per line")
    add_version(parser)
    _add_commands(parser)
    return parser


def _add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("workers", help="List the worker hosts").set_defaults(run=_workers)
    queue = commands.add_parser("queue", help="Count the unfinished jobs by what they need, and the hosts that have it")
    queue.set_defaults(run=_queue)
    jobs = commands.add_parser("jobs", help="List the unfinished jobs")
    jobs.add_argument("--dead", action="store_true", help="List the jobs that failed because too many workers died")
    jobs.set_defaults(run=_jobs)
    drain = commands.add_parser("drain", help="Let a worker host finish its jobs and take no more")
    drain.add_argument("worker", type=_name, metavar="WORKER", help="Id, its beginning, or the name of the machine")
    drain.add_argument("--wait", action="store_true", help="Wait until its jobs have ended")
    drain.add_argument(
        "--timeout", type=_seconds, default=math.inf, metavar="SECONDS", help="Time to wait (default: for ever)"
    )
    drain.set_defaults(run=_drain)
    cancel = commands.add_parser("cancel", help="Cancel unfinished jobs, such as those that no worker host can take")
    cancel.add_argument("job", type=_name, nargs="+", metavar="JOB")
    cancel.set_defaults(run=_cancel)
    retry = commands.add_parser("retry", help="Queue failed jobs again, with all attempts and no deadline")
    retry.add_argument("job", type=_name, nargs="+", metavar="JOB")
    retry.set_defaults(run=_retry)
    drop = commands.add_parser("drop", help="Delete failed jobs")
    drop.add_argument("job", type=_name, nargs="+", metavar="JOB")
    drop.set_defaults(run=_drop)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be the id of a job or a worker host, got {text[:80]!r}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, got {text[:80]!r}")
    return seconds


if __name__ == "__main__":
    main()
