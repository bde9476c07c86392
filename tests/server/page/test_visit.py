"""Jobs of a browser, whose ids the browser keeps."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from server.page.visit import MAX_JOBS, Visit


def job_id(number: int) -> str:
    return f"job_{number:032x}"


class FakeJobs:
    """Jobs 1 to 5, by id; counts the questions."""

    def __init__(self) -> None:
        self.known = {job_id(number): SimpleNamespace(id=job_id(number), sequence=number) for number in range(1, 6)}
        self.asked = 0

    async def get(self, found: str) -> SimpleNamespace | None:
        self.asked += 1
        return self.known.get(found)


def sequences(visit: Visit, limit: int = 10, before: int | None = None) -> tuple[list[int], bool]:
    jobs, has_more = asyncio.run(visit.page(limit, before))
    return [job.sequence for job in jobs], has_more


def test_jobs_of_earlier_visits_and_new_ones_are_paged_newest_first() -> None:
    jobs: Any = FakeJobs()
    visit = Visit(jobs)
    asyncio.run(visit.recall(json.dumps([job_id(number) for number in (2, 1, 9, 4)])))
    assert sequences(visit) == ([4, 2, 1], False)
    assert job_id(5) in visit.add(jobs.known[job_id(5)])
    assert sequences(visit, limit=2) == ([5, 4], True)
    assert sequences(visit, limit=2, before=4) == ([2, 1], False)
    del jobs.known[job_id(2)]
    assert sequences(visit) == ([5, 4, 1], False)


@pytest.mark.parametrize(
    "stored", [None, 1, "", "[", "[" * 100_000, "{}", "7", '["x", 1, null, ["job_0"]]', json.dumps(["x" * 99] * 9999)]
)
def test_what_else_a_browser_sends_is_ignored(stored: object) -> None:
    jobs: Any = FakeJobs()
    visit = Visit(jobs)
    asyncio.run(visit.recall(stored))
    assert sequences(visit) == ([], False) and jobs.asked == 0


def test_number_of_ids_is_limited() -> None:
    jobs: Any = FakeJobs()
    asyncio.run(Visit(jobs).recall(json.dumps([job_id(number) for number in range(1000)])))
    assert jobs.asked == MAX_JOBS
