"""Count the tracebacks in the logs of a fleet, which no operator should have to read. Knows files; no processes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def tracebacks(logs: Sequence[Path]) -> Counter[str]:
    """Return the number of tracebacks by logger and last line; those of a process that died, by "Traceback"."""
    found: Counter[str] = Counter()
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                found["Traceback"] += 1
            elif '"exc_info"' in line:
                record = json.loads(line)
                found[f"{record['logger']}: {_without_digits(record['exc_info'].splitlines()[-1])}"] += 1
    return found


def _without_digits(text: str) -> str:
    """Return a line in which ids and ports do not tell equal errors apart."""
    return "".join("#" if character.isdigit() else character for character in text[:150])
