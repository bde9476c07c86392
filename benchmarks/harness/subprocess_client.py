"""Another process that does what it is asked, a line of JSON each way: what it costs is its own, and can be told.

Knows pipes; not what is asked.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

Answer = dict[str, Any]


class SubprocessClient:
    """`python -m MODULE ARGUMENTS`, which calls `serve`."""

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str, **arguments: Any) -> Answer:
        """What the function of that name answers, with "cpu_s": the processor time that it took."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([what, arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._process.args)} ended; its last words are above")  # type: ignore[arg-type]
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
    """Answers on stdout what comes on stdin, until that ends."""
    for line in sys.stdin:
        what, arguments = json.loads(line)
        before = _cpu_seconds()
        answer = functions[what](**arguments)
        print(json.dumps(answer | {"cpu_s": _cpu_seconds() - before}), flush=True)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
