"""Events of tasks, encoded once for all followers."""

import asyncio
import gc

from fakes.jobs import image, job
from fakes.loop import MANIFEST
from fakes.worker_link import FakeLink

from server.api.task_events import TaskEventEncoder
from server.jobs.embedded import EmbeddedJobs
from server.jobs.job import StoredImage
from server.jobs.storage.store import JobStore

MB = 1 << 20


def test_followers_share_one_encoded_image() -> None:
    class Watched(JobStore):
        reads = 0

        def image(self, id: str, index: int) -> StoredImage | None:
            self.reads += 1
            return super().image(id, index)

    async def story() -> None:
        store = Watched(None)
        ended = store.add(job())
        store.start(ended.id)
        store.add_image(ended.id, image(data=bytes(2 * MB)))
        store.finish(ended.id)
        jobs = EmbeddedJobs(store, MANIFEST)
        jobs.worker_queue.add_device("cpu").link = FakeLink()
        await jobs.start()
        encoder = TaskEventEncoder(jobs)

        async def first_event() -> object:
            return await encoder.encode(await anext(jobs.follow(ended)), "0", "http://localhost/")

        encoded = await asyncio.gather(*(first_event() for _ in range(20)))
        assert store.reads == 1 and len(set(map(id, encoded))) == 1
        del encoded
        gc.collect()
        assert not encoder._shared and not jobs._events._shared
        await jobs.stop(grace=0)

    asyncio.run(asyncio.wait_for(story(), 20))
