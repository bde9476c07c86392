"""No request holds up the event loop, which serves everybody."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from fakes.loop import MANIFEST
from fakes.worker_link import FakeLink, follow, job

from engine.request import ImageRequest
from engine.size import Size
from engine.stages import StageTimes
from server.api.access import AccessPolicy
from server.app import AppOptions, create_app
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.storage.store import JobStore
from server.worker.messages import Heartbeat

QUEUE = 256
MAX_GAP = 0.05  # seconds in which the loop does nothing else
LONG_PROMPT = "\U0001f3a8" * 32_000  # 128 KB
SIZES = [Size(width, height) for width in range(64, 257, 16) for height in range(64, 257, 16)]

pytestmark = pytest.mark.timing


class Watchdog:
    """Measures the gaps between two turns of the event loop."""

    def __init__(self) -> None:
        self.largest = 0.0

    async def run(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            self.largest, last = max(self.largest, now - last), now


@asynccontextmanager
async def full_queue(watchdog: Watchdog) -> AsyncIterator[tuple[EmbeddedJobs, httpx.AsyncClient]]:
    """Yield a service with 256 unfinished jobs of ten images, each of another client, with long prompts."""
    jobs = EmbeddedJobs(JobStore(None), MANIFEST, Limits(queue=QUEUE))
    jobs.worker_queue.add_device("cpu").link = FakeLink()
    await jobs.start()
    for size in SIZES[:-1]:
        jobs.worker_queue._tracker.estimates.learn(size, 8, StageTimes(passes=1.0))
    request = ImageRequest(LONG_PROMPT, *SIZES[-1], negative_prompt=LONG_PROMPT, guidance_scale=4.0)
    for number in range(QUEUE):
        await jobs.submit(replace(job(f"job_{number}", n=10), request=request, client=f"client {number}"))
    transport = httpx.ASGITransport(create_app(jobs, AppOptions(AccessPolicy(shared_history=True))))
    watching = asyncio.create_task(watchdog.run())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        await client.get("/health")  # imports and caches
        watchdog.largest = 0.0
        yield jobs, client
    watching.cancel()
    await jobs.stop(grace=0)


Request = Callable[[httpx.AsyncClient], Awaitable[object]]
REQUESTS: dict[str, Request] = {
    "page of tasks": lambda client: client.get("/v1/tasks", params={"limit": 200}),
    "last page of tasks": lambda client: client.get("/v1/tasks", params={"limit": 200, "before": 201}),
    "task": lambda client: client.get("/v1/task/job_255"),
    "metrics": lambda client: client.get("/metrics"),
    "refused job": lambda client: client.post("/v1/generate", json={"prompt": LONG_PROMPT, "timeout": 9}),
    "repeated key": lambda client: client.post(
        "/v1/generate", json={"prompt": LONG_PROMPT}, headers={"idempotency-key": "key"}
    ),
    "cancelled task": lambda client: client.delete("/v1/task/job_100"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_no_request_holds_up_the_event_loop_with_a_full_queue(request_: Request) -> None:
    async def story() -> None:
        watchdog = Watchdog()
        async with full_queue(watchdog) as (_, client):
            for _ in range(3):
                await request_(client)
                await asyncio.sleep(0.01)
        print(f"largest gap: {watchdog.largest * 1e3:.1f} ms")
        assert watchdog.largest < MAX_GAP

    asyncio.run(asyncio.wait_for(story(), 60))


def test_progress_of_many_followed_jobs_does_not_hold_up_the_event_loop() -> None:
    async def story() -> None:
        watchdog = Watchdog()
        async with full_queue(watchdog) as (jobs, _):
            followed = [await jobs.get(f"job_{number}") for number in range(QUEUE)]
            following = [asyncio.create_task(follow(jobs, one)) for one in followed for _ in range(4)]
            await asyncio.sleep(0.1)
            watchdog.largest = 0.0
            for done in range(1, 8):
                steps = {f"job_{number}:{index}": done for number in range(2) for index in range(6)}
                jobs.worker_queue.queues[0].on_message(Heartbeat([(4, 0.01)], 0, 0, steps))
                await asyncio.sleep(0.01)
            for task in following:
                task.cancel()
        print(f"largest gap: {watchdog.largest * 1e3:.1f} ms")
        assert watchdog.largest < MAX_GAP

    asyncio.run(asyncio.wait_for(story(), 60))


def test_page_of_tasks_is_bounded_by_bytes_and_says_that_there_are_more() -> None:
    async def story() -> None:
        async with full_queue(Watchdog()) as (_, client):
            found: list[int] = []
            while True:
                answer = await client.get("/v1/tasks", params={"limit": 200} | ({"before": found[-1]} if found else {}))
                assert len(answer.content) < 2 << 20
                page = answer.json()
                found += [task["sequence"] for task in page["tasks"]]
                if not page["has_more"]:
                    break
        assert found == list(range(QUEUE, 0, -1))

    asyncio.run(asyncio.wait_for(story(), 60))
