"""Runs a plan in the process of Locust and yields its rungs as they end. Knows no figures."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.harness.tied_command import tied
from benchmarks.load.plan import LoadPlan, Rung, RungTimes
from benchmarks.workload import records
from benchmarks.workload.records import Record
from engine.module_command import module_command


@dataclass(frozen=True, slots=True)
class FinishedRung:
    """A rung with the records of its requests. Times are time.monotonic().

    Attributes:
        seconds: how long it ran; less than planned if it was interrupted.
    """

    rung: Rung
    start: float
    seconds: float
    records: tuple[Record, ...]

    @property
    def is_interrupted(self) -> bool:
        return self.seconds < self.rung.seconds


def finished_rungs(plan: LoadPlan) -> Iterator[FinishedRung]:
    """Run a plan and yield its rungs. The first Ctrl-C ends the current rung, which is still yielded.

    Raises:
        RuntimeError: the process of Locust has failed.
    """
    command = tied(module_command("benchmarks.load.locust_process"))
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as child,
        _ends_at_interrupt(child),
    ):
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(msgspec.json.encode(plan))
        child.stdin.close()
        for line in child.stdout:
            times = msgspec.json.decode(line, type=RungTimes)
            found = tuple(records.read(Path(plan.records) / f"{times.number}.jsonl"))
            yield FinishedRung(plan.options.rungs[times.number], times.start, times.seconds, found)
    if child.returncode:
        raise RuntimeError(f"the process of Locust ended with status {child.returncode}; its output is above")


@contextmanager
def _ends_at_interrupt(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End the child at the first Ctrl-C of the block; a second one interrupts this process."""
    before = signal.getsignal(signal.SIGINT)

    def end(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        child.terminate()

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if child.poll() is None:
            child.terminate()
