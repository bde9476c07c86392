"""Servers with fake workers, in processes of their own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PYTHONPATH = os.pathsep.join((str(ROOT), str(TESTS)))
FAKE_SERVER = ("-m", "fakes.server")
# before a command: SIGINT interrupts it, also in a job in the background, which is started with SIGINT ignored
AT_TERMINAL = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)
READY = re.compile(r"zimage-serve: ready on (http://127\.0\.0\.1:\d+) in \d+\.\d\d s\n")


@contextmanager
def process(*command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python with some arguments and variables of its environment until the end of the block."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={"PYTHONPATH": PYTHONPATH, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def ready_url(child: subprocess.Popen[str]) -> str:
    """Wait for a server and return its base URL."""
    line = child.stdout.readline()
    match = READY.fullmatch(line)
    assert match, line or child.stderr.read()
    return match[1]
