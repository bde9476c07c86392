"""A throwaway server in a process of its own: started, paused, killed and restarted. Knows processes; no protocol."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import psutil

if TYPE_CHECKING:
    from benchmarks.services.certificates import Certificates

START_TIMEOUT = 120.0  # seconds; RabbitMQ takes 5 on an idle machine
STOP_TIMEOUT = 20.0  # seconds
POLL_DELAY = 0.05  # seconds between two attempts to reach a server that starts
USER = "zimage"  # of every server


class Service(ABC):
    """One server with its data in a temporary folder, on a free port that it keeps over restarts.

    Use it as a context manager: the process ends and the folder is deleted with the block. The process also ends with
    the thread that started it, so that nothing is left of a test run that is killed. With root's rights the server
    runs as an ordinary user.

    Args:
        host: address to listen on.

    Attributes:
        name: for people.
        package: Debian's package.
        port: on `host`.
        tls_port: on `host`, for TLS; PostgreSQL uses `port` for both.
        certificates: for TLS, if they are set before the start; then clients need the one of "client".
        password: of USER.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port, self.tls_port = free_port(host), free_port(host)
        self.certificates: Certificates | None = None
        self.password = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix=f"zimage-{self.name.lower()}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _ordinary_user()
        if self._user:
            shutil.chown(self.folder, self._user)

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Return the program that is not installed, or None."""

    @property
    @abstractmethod
    def url(self) -> str:
        """URL with user and password; of the default database, where there are several."""

    @abstractmethod
    def fresh_url(self) -> str:
        """Return the URL of a new, empty database or virtual host."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that runs the server in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return True if the server serves clients. May raise OSError if it does not."""

    def _prepare(self) -> None:  # noqa: B027 (not every server needs it)
        """Write the files that the first start needs."""

    def _copied(self, path: Path) -> Path:
        """Copy a file of the caller's to the server's folder, for its user alone."""
        copy = self.folder / path.name
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        if self._user:
            shutil.chown(copy, self._user)
        return copy

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server, on the data that are there, and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in START_TIMEOUT; with the end of its log.
        """
        self.start_without_waiting()
        self.wait_until_ready()

    def start_without_waiting(self) -> None:
        assert self._process is None, f"{self.name} is running already"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(self._command()),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at a terminal is for the caller
            )

    def wait_until_ready(self) -> None:
        """Wait until the server answers; see `start`."""
        assert self._process is not None
        give_up = time.monotonic() + START_TIMEOUT
        while time.monotonic() < give_up:
            if (status := self._process.poll()) is not None:
                self._process = None
                raise RuntimeError(f"{self.name} ended with {status} while starting:\n{self.log_tail()}")
            with suppress(OSError):
                if self._answers():
                    return
            time.sleep(POLL_DELAY)
        raise RuntimeError(f"{self.name} did not answer in {START_TIMEOUT:.0f} s:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the server in order; its data stay."""
        assert self._process is not None, f"{self.name} is not running"
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server and its child processes with SIGKILL; its data stay."""
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait()
            self._process = None
        while any(map(is_alive, processes)):  # a child of a killed server is not ours to wait for
            time.sleep(POLL_DELAY / 5)

    def restart(self) -> None:
        """Kill the server if it runs, and start it on the same port and data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop all processes of the server with SIGSTOP: connections stay open and nobody answers."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Continue after `pause`."""
        for process in self._processes():
            process.resume()

    def close(self) -> None:
        """Kill the server and delete its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self, lines: int = 20) -> str:
        """Return the end of the server's log."""
        log = self.folder / "log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def _processes(self) -> list[psutil.Process]:
        """Return the server's process and then its descendants; empty if it does not run."""
        if self._process is None or self._process.poll() is not None:
            return []
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def _as_user(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs `command` as an ordinary user and ends with this thread."""
        identity = ["--reuid", self._user, "--regid", str(_group(self._user)), "--init-groups"] if self._user else []
        return ["setpriv", *identity, "--pdeathsig", "KILL", "--", *command]


def is_alive(process: psutil.Process) -> bool:
    """Return False once a process has ended, also if its parent has not asked for its status yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def program(name: str, *folders: Path) -> Path | None:
    """Return the path of a program in `folders` or in PATH."""
    path = os.pathsep.join((*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin"))
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def first_missing(*programs: tuple[str, Path | None]) -> str | None:
    """Return the name of the first program that was not found; setpriv is needed by all services."""
    return next((name for name, path in (*programs, ("setpriv", program("setpriv"))) if path is None), None)


def _ordinary_user() -> str | None:
    """Return the user that servers run as: None for the current one, unless it is root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
