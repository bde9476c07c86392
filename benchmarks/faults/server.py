"""A `zimage-serve` that is killed, stopped and started again on one database, with a clock that can be set."""

import asyncio
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.faults.audit import unfinished
from engine.module_command import module_command

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
READY_SECONDS = 120.0
HANG_SECONDS = 15.0


class Server:
    """A server with a database, an archive and keys, on one port for all its processes.

    Attributes:
        starts: processes so far.
        recovered: unfinished jobs that the last process has found and resumed.
        has_clock: True if libfaketime is installed, so that `set_clock` has an effect.
    """

    def __init__(self, engines: Path, loras: Path | None, folder: Path, keys: Sequence[str], threads: int) -> None:
        self.folder, self.database, self.archive = folder, folder / "jobs.db", folder / "archive"
        self.has_clock, self.starts, self.recovered = FAKETIME.exists(), 0, 0
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._clock = folder / "clock"
        self._command = [
            *module_command("server.cli"), "--drain-seconds", "0", "--engines", str(engines), "--port", str(port),
            "--threads", str(threads), "--database", str(self.database), "--archive", str(self.archive),
            "--archive-days", "7", "--hang-seconds", str(HANG_SECONDS), "--log-format", "json",
            *(["--loras", str(loras)] if loras else []),
        ]  # fmt: skip
        self._environment = os.environ | {"ZIMAGE_KEYS": " ".join(keys)}
        if self.has_clock:
            self._environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
        self._process: subprocess.Popen[bytes] | None = None
        self.set_clock("+0")

    @property
    def logs(self) -> list[Path]:
        """The log of each process, in the order of their starts."""
        return [self._log(number) for number in range(self.starts)]

    async def start(self) -> None:
        """Start a process on the database of the one before, and wait until it serves."""
        self.recovered = unfinished(self.database, "durable") if self.database.exists() else 0
        with self._log(self.starts).open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=log
            )
        self.starts += 1
        await self.wait_until_ready()

    async def wait_until_ready(self) -> None:
        """Wait until a worker takes jobs.

        Raises:
            RuntimeError: none does so within READY_SECONDS, or the server has ended.
        """
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while not await asyncio.to_thread(self._is_ready):
            if self._process.poll() is not None:
                raise RuntimeError(f"zimage-serve ended with {self._process.returncode}; see {self.logs[-1]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no worker was ready within {READY_SECONDS:.0f} s; see {self.logs[-1]}")
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        """End the server as an operator does."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            self.kill()

    def kill(self) -> None:
        """End the server with SIGKILL; its worker ends by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def processes(self) -> dict[str, psutil.Process]:
        """Return the server's process and that of its worker, if there are any."""
        found: dict[str, psutil.Process] = {}
        if self._process is not None and self._process.poll() is None:
            with suppress(psutil.Error):
                found["server"] = psutil.Process(self._process.pid)
                found |= dict(zip(["worker"], found["server"].children(), strict=False))
        return found

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the process "server" or "worker", if there is one."""
        if (process := self.processes().get(name)) is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def set_clock(self, offset: str) -> None:
        """Set the wall clock of server and worker to an offset in libfaketime's notation, such as +10d."""
        self._clock.write_text(f"{offset}\n")

    def _log(self, number: int) -> Path:
        return self.folder / f"server-{number}.log"

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):  # it does not listen yet, has no worker, or is stopped
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
