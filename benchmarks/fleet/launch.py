"""Runs a command of this project, such as `server.cli`, with the stand-in engine in its worker processes.

Arguments: MODULE ARGUMENT...
"""

import os
import runpy
import select
import sys
import time

from engine import module_command as commands

REPLACED, STAND_IN = "server.worker.process", "benchmarks.fleet.stand_in"


def stand_in_command(module: str, *arguments: str) -> list[str]:
    """Return the command that starts a process of MODULE in which workers have the stand-in engine."""
    return commands.module_command("benchmarks.fleet.launch", module, *arguments)


def main(argv: list[str]) -> None:
    """Replace the module of worker processes before the command imports the function that names it."""
    original = commands.module_command

    def replaced(module: str, *arguments: str) -> list[str]:
        return original(STAND_IN if module == REPLACED else module, *arguments)

    commands.module_command = replaced
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        time.sleep = sleep  # type: ignore[assignment]
    sys.argv = argv
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def sleep(seconds: float) -> None:
    """Sleep as `time.sleep` does, which fails under libfaketime: it knows no clock_nanosleep with an absolute time."""
    select.select([], [], [], seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
