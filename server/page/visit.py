"""The jobs of one browser, for a server without keys whose history is not shared. Knows ids and jobs; not the page.

The browser keeps the ids. It may send any: whoever knows the id of a job may read and delete it.
"""

import json
import re
from typing import Any

from server.jobs.job import Job
from server.jobs.service import JobService

STORAGE = "zimage-tasks"  # key in the browser's storage
MAX_JOBS = 200  # ids that a browser keeps
JOB_ID = re.compile(r"job_[0-9a-f]{32}")
READ = f"return localStorage.getItem({json.dumps(STORAGE)})"
APPEND = """
(() => {
  const key = %s, kept = JSON.parse(localStorage.getItem(key) || "[]");
  localStorage.setItem(key, JSON.stringify([%s, ...kept].slice(0, %d)));
})()
"""


class Visit:
    """Jobs that a browser has submitted, newest first."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs
        self._ids: dict[int, str] = {}  # by sequence

    def add(self, job: Job) -> str:
        """Add a new job; return the script by which the browser keeps its id."""
        self._ids[job.sequence] = job.id
        return APPEND % (json.dumps(STORAGE), json.dumps(job.id), MAX_JOBS)

    async def recall(self, stored: Any) -> None:
        """Add the jobs of earlier visits, from what the browser has kept."""
        for job_id in _ids(stored):
            if job := await self._jobs.get(job_id):
                self._ids[job.sequence] = job.id

    async def page(self, limit: int, before: int | None) -> tuple[list[Job], bool]:
        """Return jobs whose sequence is below `before`, newest first, and True if there are older ones."""
        older = sorted((sequence for sequence in self._ids if before is None or sequence < before), reverse=True)
        found = [await self._jobs.get(self._ids[sequence]) for sequence in older[:limit]]
        return [job for job in found if job is not None], len(older) > limit


def _ids(stored: Any) -> list[str]:
    try:
        found = json.loads(stored) if isinstance(stored, str) else []
    except (ValueError, RecursionError):
        return []
    ids = found[:MAX_JOBS] if isinstance(found, list) else []
    return [text for text in ids if isinstance(text, str) and JOB_ID.fullmatch(text)]
