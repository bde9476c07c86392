"""A job service with a fake worker, and jobs and messages for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fakes.jobs import METADATA
from fakes.loop import MANIFEST

from engine.request import ImageFormat, ImageRequest
from engine.stages import StageTimes
from server.jobs.admission.admission import Limits
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import Job, Priority
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.store import JobStore
from server.worker import messages
from server.worker.messages import Generate, ToWorker


class FakeLink:
    """A `WorkerLink` that keeps what is sent."""

    def __init__(self) -> None:
        self.is_ready, self.failed_starts, self.last_failure, self.starts = True, 0, None, 1
        self.sent: list[ToWorker] = []
        self.pid = None

    def send(self, message: ToWorker) -> None:
        self.sent.append(message)

    def take_generated(self) -> list[str]:
        """Return the job of each image that was sent since the last call."""
        found = [message.job for message in self.sent if isinstance(message, Generate) for _ in message.indices]
        self.sent.clear()
        return found


def job(
    name: str,
    *,
    key: str | None = None,
    deadline: float | None = None,
    n: int = 1,
    client: str = "",
    priority: Priority = "interactive",
) -> Job:
    return Job(
        id=name,
        request=ImageRequest("a cat", 64, 64),
        image_count=n,
        format=ImageFormat(),
        api="test",
        durable=True,
        idempotency_key=key,
        fingerprint="f",
        created=time.time(),
        deadline=deadline,
        client=client,
        priority=priority,
    )


def finished(name: str, index: int = 0) -> messages.Finished:
    seconds = StageTimes(prompt_encoder=0.1, passes=0.8, vae_decoder=0.1)
    return messages.Finished(f"{name}:{index}", b"image", replace(METADATA, width=64, height=64, seconds=seconds))


Story = Callable[[EmbeddedJobs, FakeLink], Awaitable[None]]


def play(
    story: Story, store: JobStore | None = None, limits: Limits | None = None, archive: Archive | None = None
) -> None:
    """Run a story with a started job service, and stop the service."""

    async def run() -> None:
        link = FakeLink()
        jobs = EmbeddedJobs(store or JobStore(None), MANIFEST, limits, archive)
        jobs.worker_queue.add_device("cpu").link = link
        await jobs.start()
        await story(jobs, link)
        await jobs.stop(grace=1)

    asyncio.run(asyncio.wait_for(run(), 20))


async def follow(jobs: EmbeddedJobs, accepted: Job) -> list[object]:
    return [event async for event in jobs.follow(accepted)]
