"""The server's records against those of its clients: the database, the logs, the archive and the metrics."""

import json
import re
import sqlite3
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.faults.accounting import Accounts

FINAL = ("done", "failed", "cancelled")
ENDED = re.compile(r"(job_[0-9a-f]{32}) \w+ in [0-9.]+ s")
COUNTER = re.compile(r"^zimage_jobs_(accepted|ended)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def unfinished(database: Path, condition: str = "TRUE") -> int:
    """Return the number of stored jobs that have not ended and meet a condition in SQL."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(f"SELECT count(*) FROM jobs WHERE finished IS NULL AND {condition}")
        return int(rows.fetchone()[0])


def check_database(database: Path, accounts: Accounts) -> Counter[str]:
    """Compare every job that a client knows with its row; return the number of rows by state."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT id, state, finished FROM jobs").fetchall()
    states = {job: state for job, state, _ in rows}
    for job, state, finished in rows:
        if state not in FINAL or finished is None:
            accounts.break_promise("job without an end", f"{job}: {state}")
    for job in accounts.accepted:
        if job not in states and job not in accounts.deleted:
            accounts.break_promise("accepted job is not in the database", job)
    for job, state in accounts.ends.items():
        if states.get(job, state) != state:
            accounts.break_promise("another end in the database", f"{job}: {state}, stored as {states[job]}")
    return Counter(states.values())


def check_counters(url: str, recovered: int, accounts: Accounts) -> None:
    """Check that the last server's process has ended as many jobs as it has found and accepted; nothing is running."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        counted: Counter[str] = Counter()
        for name, value in COUNTER.findall(response.read().decode()):
            counted[name] += int(float(value))
    if counted["accepted"] + recovered != counted["ended"]:
        accounts.break_promise("accepted is not ended", f"{recovered} found, {dict(counted)}")


def check_archive(archive: Path, accounts: Accounts) -> int:
    """Return the number of images that a client has and the archive has not, by the ids in the files' names."""
    files = {file.stem.rpartition("_")[2] for file in archive.glob("generated_*")}
    missing = [(job, index) for job, index in accounts.answered if f"{job[-6:]}{index:02x}" not in files]
    for job, index in missing:
        accounts.break_promise("answered image is not in the archive", f"{job}:{index}")
    return len(missing)


def check_logs(logs: Sequence[Path], minutes: float, accounts: Accounts) -> dict[str, float]:
    """Count lines and tracebacks; a job that ends twice in one process is a broken promise."""
    lines = tracebacks = 0
    for log in logs:
        ends: Counter[str] = Counter()
        for line in log.read_text(errors="replace").splitlines():
            lines += 1
            if line.startswith("Traceback") or '"exc_info"' in line:
                tracebacks += 1
                accounts.break_promise("traceback in the log", f"{log.name}: {_message(line)}")
            if found := ENDED.search(line):
                ends[found[1]] += 1
        for job, count in ends.items():
            if count > 1:
                accounts.break_promise("job ended twice", f"{log.name}: {job}, {count} times")
    return {"lines_per_min": round(lines / minutes, 1), "tracebacks": tracebacks}


def _message(line: str) -> str:
    """Return the message and the last line of the traceback."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return f"{record['message'].strip()}: {record['exc_info'].splitlines()[-1]}"
