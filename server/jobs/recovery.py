"""Jobs that an earlier server left unfinished, and their way back into the queue."""

from dataclasses import replace

from server.jobs.devices.worker_queue import WorkerQueue
from server.jobs.job import MAX_TOTAL_ATTEMPTS
from server.jobs.live_job import LiveJob
from server.jobs.storage.async_store import AsyncStore
from server.jobs.tracker import JobTracker


async def recover(store: AsyncStore, tracker: JobTracker, worker_queue: WorkerQueue) -> None:
    """Resume the unfinished jobs of the store; those that may have killed a server run one at a time."""
    found = []
    unfinished, sizes = await store.call(store.store.recover), await store.call(store.store.init_images.unpacked_bytes)
    for job in unfinished:
        images = await store.images(job.id)
        job = replace(job, client=job.client or job.owner or "")  # version 4 stored no clients
        by_index = {image.index: image for image in images}
        found.append(LiveJob(job, images=by_index, init_image_bytes=sizes.get(job.id, 0)))
    for live in found:
        tracker.add(live)
    worker_queue.add_suspects(live for live in found if live.missing() and 0 < live.job.attempts < MAX_TOTAL_ATTEMPTS)
    for live in found:
        attempts = live.job.attempts
        if not live.missing():
            tracker.finish(live)
        elif attempts >= MAX_TOTAL_ATTEMPTS:
            tracker.fail(live, "worker_lost", f"The job was started {attempts} times and never finished.")
    worker_queue.send_pending()
