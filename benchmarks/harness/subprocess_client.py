"""Function calls into another process, one line of JSON each way, so that its processor time can be measured.

It does not know the functions.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from engine.module_command import module_command

Answer = dict[str, Any]


class SubprocessClient:
    """A running module that calls `serve`."""

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            module_command(module, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, function: str, **arguments: Any) -> Answer:
        """Call a function in the process and return its answer, with its processor time as "cpu_s".

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([function, arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._process.args)} ended early; its error output is above")  # type: ignore[arg-type]
        answer: Answer = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve(functions: Mapping[str, Callable[..., Answer]]) -> None:
    """Run the calls that arrive on stdin and print their answers, until stdin closes."""
    for line in sys.stdin:
        function, arguments = json.loads(line)
        before = _cpu_seconds()
        answer = functions[function](**arguments)
        print(json.dumps(answer | {"cpu_s": _cpu_seconds() - before}), flush=True)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
