"""The process of Locust: runs the rungs of a plan one after the other and writes the records of their requests.

python -m benchmarks.load.locust_process < PLAN

SIGTERM ends the current rung at once; its unfinished requests are recorded as cut off.
"""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import BinaryIO

import gevent
import msgspec
from gevent.event import Event
from locust.env import Environment
from locust.runners import LocalRunner

from benchmarks.load.client.fingerprints import ImageCheck
from benchmarks.load.plan import LoadPlan, Rung, RungTimes
from benchmarks.load.users import Arrivals, ClosedUser, RunningRung, in_thread
from benchmarks.workload import records

GRACE = 5.0  # seconds beyond the end of the last attempt, in which its record is written


class LoadRunner:
    """Runs the rungs of a plan with Locust."""

    def __init__(self, plan: LoadPlan) -> None:
        self.errors: list[str] = []
        self._plan = plan
        self._stopped = Event()
        check = None if plan.references is None else in_thread(ImageCheck(plan.references).require_right)
        self._session = partial(plan.options.session, plan.url, check)
        self._environment = Environment(user_classes=[ClosedUser, Arrivals], host=plan.url)
        self._environment.events.user_error.add_listener(self._on_user_error)
        self._runner: LocalRunner = self._environment.create_local_runner()
        if plan.options.ui_port is not None:
            self._environment.create_web_ui("127.0.0.1", plan.options.ui_port)

    def run(self) -> None:
        """Run the rungs; print the times of each as a line of JSON when it has ended."""
        for number, rung in enumerate(self._plan.options.rungs):
            with (Path(self._plan.records) / f"{number}.jsonl").open("wb") as file:
                start, seconds = self._run(rung, file)
            print(msgspec.json.encode(RungTimes(number, start, seconds)).decode(), flush=True)
            if self._stopped.is_set():
                break

    def stop(self) -> None:
        """End the current rung now, also while its last answers are awaited."""
        self._stopped.set()
        self._runner.user_greenlets.kill(block=False)

    def _run(self, rung: Rung, file: BinaryIO) -> tuple[float, float]:
        """Run a rung and wait for its last answers; return its start and how long it ran."""
        options = self._plan.options

        def write(record: records.Record) -> None:
            records.write(file, record)
            file.flush()

        session = self._session()
        running = RunningRung(rung, options, session, self._plan.cases, write)
        users = Arrivals if rung.users is None else ClosedUser
        users.rung = running
        self._runner.start(rung.users or 1, spawn_rate=rung.users or 1, user_classes=[users])
        self._stopped.wait(max(rung.seconds - session.now, 0))
        seconds = min(session.now, rung.seconds)
        self._environment.stop_timeout = 0 if self._stopped.is_set() else options.timeout + options.patience + GRACE
        self._runner.stop()
        self._runner.user_greenlets.join()  # killed ones have records to write
        return session.started, seconds

    def _on_user_error(self, exception: Exception, **_: object) -> None:
        self.errors.append(f"{type(exception).__name__}: {exception}")


def main() -> None:
    runner = LoadRunner(msgspec.json.decode(sys.stdin.buffer.read(), type=LoadPlan))
    gevent.signal_handler(signal.SIGTERM, runner.stop)
    runner.run()
    if runner.errors:  # a defect of ours; Locust has logged it
        sys.exit(f"zimage-bench load: {len(runner.errors)} errors in users, the first: {runner.errors[0]}")


if __name__ == "__main__":
    main()
