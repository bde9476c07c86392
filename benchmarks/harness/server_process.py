"""A running `zimage-serve` or another server, and the processor time and memory of its processes."""

import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Self, TypeVar

import psutil

from benchmarks.harness.tied_command import tied
from engine.module_command import module_command

READY = re.compile(r"ready on (\S+)")
T = TypeVar("T")

SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ServerProcess:
    """A server of a plan directory, on a free port. It does not outlive this process."""

    def __init__(
        self,
        engines: Path,
        threads: int = 0,
        database: Path | None = None,
        command: list[str] | None = None,
        batching: str = "auto",
    ) -> None:
        """
        Args:
            threads: CPU threads of the engine; 0 for one per core.
            database: file of the jobs' database; None for the server's default.
            command: command that starts another server in place of `zimage-serve`.
            batching: its option. With "auto" it measures a batch table when it is idle, unless the plans have one.
        """
        options = ["--engines", str(engines), "--port", "0", "--threads", str(threads)]
        options += ["--drain-seconds", "0", "--batching", batching]
        command = command or module_command("server.cli", *options)
        command += ["--database", str(database)] if database else []
        self._process = subprocess.Popen(tied(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        found = READY.search(self._process.stdout.readline())
        if found is None:
            self._process.kill()
            raise RuntimeError(f"the server did not start; run it by hand to see why: {' '.join(command)}")
        self.url = found[1]
        server = psutil.Process(self._process.pid)
        self.processes = {"server": server}
        if workers := server.children():  # another server may have none
            self.processes["worker"] = workers[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time of each process so far, in seconds."""
        times = {name: process.cpu_times() for name, process in self.processes.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}

    def memory(self) -> dict[str, int]:
        """Return the resident bytes of each process."""
        return {name: process.memory_info().rss for name, process in self.processes.items()}

    def metrics(self) -> dict[str, float]:
        """Return the Prometheus samples by name, summed over their labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            text = response.read().decode()
        found: dict[str, float] = {}
        for name, value in SAMPLE.findall(text):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def settle(self) -> dict[str, float]:
        """Wait until all jobs have finished, and return the metrics."""
        while (found := self.metrics())["zimage_jobs_running"] or found["zimage_jobs_waiting"]:
            time.sleep(0.05)
        return found


class Sampler(Generic[T]):
    """Calls a function every `interval` seconds in a thread, while the block runs."""

    def __init__(self, function: Callable[[], T], interval: float) -> None:
        self.samples: list[T] = []
        self._function, self._interval = function, interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self.samples.append(self._function())
