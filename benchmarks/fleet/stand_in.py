"""A worker process with the stand-in engine, in place of `server.worker.process`, with the same arguments.

SIGUSR1 makes its next pass hang for ever, as a broken driver does.
"""

import signal
import socket
import sys
import time
from pathlib import Path

from benchmarks.fleet.plans import read_times
from benchmarks.fleet.timed_loop import TimedLoop
from engine.options import RuntimeOptions
from engine.plan.directory import read
from engine.scheduler.batch_table import BatchTable
from server import logs
from server.worker.idle_measurement import IdleMeasurement
from server.worker.worker import Worker


class StandInTable:
    """The batch table that the plans come with, in place of a measurement and its file."""

    def __init__(self, table: BatchTable) -> None:
        self._table = table

    def advance(self) -> bool:
        return False

    def table(self) -> BatchTable:
        return self._table

    def read(self) -> BatchTable:
        return self._table

    def write(self, table: BatchTable) -> None:
        pass


def main(argv: list[str]) -> None:
    """Generate until the server stops the process. Arguments: PLANS OPTIONS LOG_FORMAT LOG_LEVEL DESCRIPTOR."""
    started = time.perf_counter()
    folder, options = Path(argv[0]), RuntimeOptions.decode(argv[1])
    for kind in (signal.SIGINT, signal.SIGTERM):  # the server sends Stop
        signal.signal(kind, signal.SIG_IGN)
    logs.configure("json" if argv[2] == "json" else "text", argv[3], process="worker")
    manifest = read(folder)
    table = read_times(folder)
    loop = TimedLoop(manifest, table, options.slots, [name for name, _ in options.loras])
    measured = StandInTable(table)
    measurement = IdleMeasurement(table, measured, measured, loop.use_table, options.slots)
    signal.signal(signal.SIGUSR1, lambda *_: loop.hangs.set())
    with socket.socket(fileno=int(argv[-1])) as sock:
        worker = Worker(loop, manifest, sock, measurement=measurement)
        worker.run(time.perf_counter() - started, window=measurement.window)


if __name__ == "__main__":
    main(sys.argv[1:])
