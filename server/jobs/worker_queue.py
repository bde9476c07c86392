"""Delivery of jobs to a worker: sending them, handling its messages, and replays after its death.

Knows messages; neither processes nor clients.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from server.errors import StoreUnavailable
from server.jobs.device_status import DeviceStatus
from server.jobs.follower import JobPreview
from server.jobs.job import StoredImage
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.tracker import JobTracker
from server.worker import messages
from server.worker.messages import FromWorker, InvalidMessage, ToWorker

log = logging.getLogger(__name__)

LOAD_AGAIN = 1.0  # seconds between two attempts to read an init image that the disk refuses
MAX_ATTEMPTS = 2  # of a job whose worker dies: the first, and one replay
HOPELESS_STARTS = 5  # failed starts of a worker in a row, after which jobs fail instead of waiting


class WorkerLink(Protocol):
    """The connection to a worker: `server.worker.supervisor.Supervisor`, or a fake.

    Attributes:
        is_ready: True if a worker takes messages.
        starts: worker processes started so far.
        failed_starts: starts in a row after which the worker was never ready.
        last_failure: reason for the end of the last worker.
        pid: process id of the worker, while there is one.
    """

    is_ready: bool
    starts: int
    failed_starts: int
    last_failure: str | None

    @property
    def pid(self) -> int | None: ...

    def send(self, message: ToWorker) -> None: ...


class WorkerQueue:
    """Sends unfinished jobs to one worker: all at once, or one suspect at a time after a worker has died.

    Suspects are the jobs that a worker was generating when it died. One of them may have caused that, so each is
    replayed alone: if it kills the next worker too, no other job loses an attempt.

    Attributes:
        link: connection to the worker; None until `server.serving` has set it.
    """

    def __init__(self, tracker: JobTracker, metrics: Metrics) -> None:
        self.link: WorkerLink | None = None
        self._tracker, self._metrics = tracker, metrics
        self._suspects: list[LiveJob] = []  # unfinished
        self._tokenizing: str | None = None  # job whose prompts the worker tokenizes now
        self._device_memory: messages.DeviceMemory | None = None
        self._loading: dict[str, asyncio.Task[None]] = {}  # by job whose init image is being read
        tracker.on_ended = self._on_job_ended
        metrics.add_gauges(self._gauges)

    @property
    def is_ready(self) -> bool:
        """True if a worker takes jobs now."""
        return self.link is not None and self.link.is_ready

    @property
    def is_hopeless(self) -> bool:
        """True if starting a worker failed too often in a row."""
        return self.link is not None and self.link.failed_starts >= HOPELESS_STARTS

    @property
    def last_failure(self) -> str | None:
        return None if self.link is None else self.link.last_failure

    @property
    def pid(self) -> int | None:
        return None if self.link is None else self.link.pid

    def devices(self) -> list[DeviceStatus]:
        """Return the devices of the workers."""
        if self.link is None:
            return []
        jobs = sum(live.is_sent for live in self._tracker.unfinished)
        return [DeviceStatus("0", self.link.is_ready, self.link.starts, self.link.last_failure, jobs)]

    def stop(self) -> None:
        """Send no more jobs whose images are still to be read."""
        for task in self._loading.values():
            task.cancel()

    def add_suspects(self, jobs: Iterable[LiveJob]) -> None:
        """Replay these jobs one at a time, before all others."""
        self._suspects.extend(jobs)

    def send_pending(self) -> None:
        """Send what the worker does not have yet: the first suspect, or else all unfinished jobs."""
        if self.link is None or not self.link.is_ready:
            return
        for live in self._suspects[:1] or self._tracker.unfinished:
            if live.is_sent:
                continue
            if live.job.request.edit is not None and live.init_image is None:
                self._load_later(live)
                continue
            job, missing = live.job, tuple(live.missing())
            data = None if live.init_image is None else live.init_image.data
            self.link.send(
                messages.Generate(
                    job.id, job.request, job.format, missing, job.previews, job.share, job.cost_factor, data
                )
            )
            live.is_sent = True  # last: `send` may find no memory, and the next call tries again
            live.init_image = None

    def _load_later(self, live: LiveJob) -> None:
        """Load the init image of a job from the store, and send the job then."""
        if live.job.id not in self._loading:
            self._loading[live.job.id] = asyncio.create_task(self._load(live))

    async def _load(self, live: LiveJob) -> None:
        try:
            while live.init_image is None and not live.job.state.is_final:
                try:
                    live.init_image = await self._tracker.stored_init_image(live.job.id)
                except StoreUnavailable as error:
                    log.error("%s; the image of %s is read again later", error, live.job.id)
                    await asyncio.sleep(LOAD_AGAIN)
                    continue
                if live.init_image is None:
                    message = "The image that this job begins with is damaged or missing; send the request again."
                    self._tracker.fail(live, "job_damaged", message)
        finally:
            del self._loading[live.job.id]
        self.send_pending()

    def on_message(self, message: FromWorker) -> None:
        match message:
            case messages.Tokenizing(job):
                self._tokenizing = job
            case messages.Started(key):
                if (found := self._find(key)) and not found[0].is_started:
                    found[0].is_started = True
                    self._tracker.record_attempt(found[0])
            case messages.Heartbeat():
                self._metrics.heartbeat(message)
                found_steps = ((self._find(key), done) for key, done in message.steps_done.items())
                self._tracker.set_steps_done([(*found, done) for found, done in found_steps if found])
            case messages.PreviewReady(key, done, data):
                if found := self._find(key):
                    self._tracker.show_preview(found[0], JobPreview(found[1], done, data))
            case messages.Finished(key, data, metadata):
                if (found := self._find(key)) and found[1] not in found[0].images:
                    live, index = found
                    self._tracker.add_image(live, StoredImage(index, live.job.format.media_type, data, metadata))
            case messages.Failed(key, code, text):
                if found := self._find(key):
                    self._tracker.fail(found[0], code, text)
            case messages.DeviceMemory():
                self._device_memory = message
            case messages.LoraSwitched(seconds):
                self._metrics.lora_switched(seconds)

    def on_worker_ready(self) -> None:
        self.send_pending()

    def on_worker_lost(self, reason: str) -> None:
        """Requeue all jobs of the worker. Fail those without attempts left, or all if no worker starts."""
        unfinished = list(self._tracker.unfinished)
        sent = [live for live in unfinished if live.is_sent]
        begun = [live for live in sent if live.is_started or live.job.id == self._tokenizing]
        self._tokenizing = None
        suspects = begun or sent  # without begun jobs, one that was only sent may have ended the worker
        charged = suspects if begun or len(sent) == 1 else []
        for live in charged:
            if not live.is_started:
                self._tracker.record_attempt(live)
        self._suspects = list(dict.fromkeys([*suspects, *self._suspects]))
        for live in unfinished:
            live.is_sent = live.is_started = False
            self._tracker.requeue(live)
            if self.is_hopeless:
                self._tracker.fail(live, "worker_unavailable", f"No worker can be started: {reason}.")
            elif live in charged and live.job.attempts >= MAX_ATTEMPTS:
                self._tracker.fail(live, "worker_lost", f"The worker died twice while generating this: {reason}.")

    def _on_job_ended(self, live: LiveJob) -> None:
        """Stop generating what is left of a job, and send the next suspect."""
        if live in self._suspects:
            self._suspects.remove(live)
        if self.link is not None and live.is_sent and (missing := live.missing()):
            self.link.send(messages.Cancel(live.job.id, tuple(missing)))
        self.send_pending()

    def _find(self, key: str) -> tuple[LiveJob, int] | None:
        """Return the job and the image's index that a message is about, unless the job has ended.

        Raises:
            InvalidMessage: the job has no such image.
        """
        job_id, _, index = key.rpartition(":")
        live = self._tracker.get(job_id)
        if live is None or live.job.state.is_final:
            return None
        if index not in map(str, range(live.job.image_count)):
            raise InvalidMessage(f"a message about image {index[:8]!r} of a job of {live.job.image_count}")
        return live, int(index)

    def _gauges(self) -> dict[str, float]:
        gauges = {
            "zimage_worker_ready": float(self.is_ready),
            "zimage_worker_starts_total": float(0 if self.link is None else self.link.starts),
        }
        if (memory := self._device_memory) is not None:
            gauges["zimage_device_memory_used_bytes"] = memory.used
            gauges["zimage_device_memory_total_bytes"] = memory.total
        return gauges
