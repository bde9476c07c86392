"""Delivery of jobs to the workers of all devices: which device gets what and when, and replays after a death.

Knows messages; neither processes nor clients.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from engine.request import LoraChoice
from engine.size import Size
from server.errors import StoreUnavailable
from server.jobs.devices.device_choice import DeviceChoice
from server.jobs.devices.device_queue import HOPELESS_STARTS, MAX_LOSSES, DeviceQueue, WorkerLink
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.job import JobState
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.tracker import JobTracker

log = logging.getLogger(__name__)

LOAD_AGAIN = 1.0  # seconds between two attempts to read an init image that the disk refuses
MAX_ATTEMPTS = 2  # of a job whose worker dies: the first, and one replay
SCAN = 64  # waiting jobs that are considered at once


class WorkerQueue:
    """Sends unfinished jobs to the workers of one or more devices.

    One device gets everything at once, and decides the order itself. With several, a device has at most its window of
    images; the rest waits here in the order of `QueueOrder`, so that an image goes to the device where it ends first.
    The images of one job may be generated on several devices.

    Suspects are the jobs that a worker was generating when it died. One of them may have caused that, so each is
    replayed alone on a device, if possible on another one: if it kills the next worker too, no other job loses an
    attempt.

    Attributes:
        queues: of the devices.
        on_room: called when `room` has grown; None if nobody asks for it.
    """

    def __init__(self, tracker: JobTracker, metrics: Metrics) -> None:
        self.queues: list[DeviceQueue] = []
        self.on_room: Callable[[], None] | None = None
        self._tracker, self._metrics = tracker, metrics
        self._suspects: list[LiveJob] = []  # unfinished
        self._reserved: DeviceQueue | None = None  # takes no further jobs until it is empty and has a suspect
        self._loading: dict[str, asyncio.Task[None]] = {}  # by job whose init image is being read
        self._last_room = 0
        self._is_sorting = False  # the jobs of a dead worker; nothing is sent meanwhile
        tracker.on_ended = self._on_job_ended
        metrics.add_gauges(self._gauges)

    def add_device(self, name: str) -> DeviceQueue:
        """Add a device, whose supervisor is then set as its `link` and has it as its listener."""
        queue = DeviceQueue(name, self._tracker, self._metrics, self)
        self.queues.append(queue)
        self._metrics.add_device(name, lambda: None if queue.link is None else queue.link.pid)
        return queue

    def connect(self, links: Mapping[str, WorkerLink]) -> None:
        """Set the link of each device, by its name."""
        for queue in self.queues:
            queue.link = links[queue.name]

    @property
    def is_ready(self) -> bool:
        """True if a worker takes jobs now."""
        return any(queue.is_ready for queue in self.queues)

    @property
    def is_hopeless(self) -> bool:
        """True if starting a worker failed too often in a row on every device."""
        return bool(self.queues) and all(queue.is_hopeless for queue in self.queues)

    @property
    def last_failure(self) -> str | None:
        """Reason for the end of the last worker, of a device that is not ready if there is one."""
        failures = [(queue.is_ready, queue.name, queue.link.last_failure) for queue in self.queues if queue.link]
        named = [(ready, name, failure) for ready, name, failure in failures if failure is not None]
        if not named:
            return None
        _, name, failure = min(named)
        return failure if len(self.queues) == 1 else f"{name}: {failure}"

    def devices(self) -> list[DeviceStatus]:
        """Return the states of the devices."""
        return [queue.status for queue in self.queues]

    @property
    def room(self) -> int:
        """Images that could be taken now, beside those that wait here, if they are as guided as the model's default."""
        manifest, waiting = self._tracker.manifest, self._tracker.unfinished.waiting
        free = sum(queue.room for queue in self._in_use() if self._takes_jobs(queue))
        free -= sum(len(live.unsent()) * live.slots(manifest) for live in waiting)
        return max(free, 0) // (2 if manifest.model.default_guidance > 0 else 1)

    def loaded(self) -> list[tuple[LoraChoice | None, Size]]:
        """Return the LoRA and the size of each job that a device has."""
        jobs = dict.fromkeys(live for queue in self.queues for live in queue.images)
        return [(live.job.request.lora_choice, live.job.request.size(self._tracker.manifest)) for live in jobs]

    def stop(self) -> None:
        """Send no more jobs whose images are still to be read, and no device back into use."""
        for task in self._loading.values():
            task.cancel()
        for queue in self.queues:
            queue.stop()

    def add_suspects(self, jobs: Iterable[LiveJob]) -> None:
        """Replay these jobs one at a time, before all others."""
        self._suspects.extend(jobs)

    def send_pending(self) -> None:
        """Send what no worker has yet, as far as the devices have room for it."""
        if self._is_sorting:
            return
        in_use = self._in_use()
        self._tracker.unfinished.set_devices(max(len(in_use), 1))
        self._replay_suspects(in_use)
        open_queues = [queue for queue in in_use if self._takes_jobs(queue)]
        if len(self.queues) == 1 and open_queues:
            self._send_everything(open_queues[0])
        elif self._tracker.unfinished.waiting and any(queue.room for queue in open_queues):
            self._send_waiting(DeviceChoice(open_queues))
        if self.on_room is not None:
            before, self._last_room = self._last_room, self.room
            if self._last_room > before:
                self.on_room()

    def _in_use(self) -> list[DeviceQueue]:
        """Return the devices whose workers take jobs; those that rest only if there are no others."""
        ready = [queue for queue in self.queues if queue.is_ready]
        return [queue for queue in ready if not queue.is_resting] or ready

    def _takes_jobs(self, queue: DeviceQueue) -> bool:
        return queue is not self._reserved and queue.suspect is None

    def _send_everything(self, queue: DeviceQueue) -> None:
        for live in list(self._tracker.unfinished.waiting):
            if live not in self._suspects and self._has_init_image(live):
                queue.send(live, live.unsent())
                live.init_image = None

    def _send_waiting(self, choice: DeviceChoice) -> None:
        """Send the first waiting jobs, until no device has room."""
        manifest, suspects = self._tracker.manifest, set(self._suspects)
        waiting = (live for live in self._tracker.unfinished.in_order() if live.is_waiting and live not in suspects)
        for live in islice(waiting, SCAN):
            if not choice.fits(live.slots(manifest)):
                return  # jobs behind it wait too; else a guided one might never find two free slots
            if not self._has_init_image(live):
                continue
            chosen: dict[DeviceQueue, list[int]] = {}
            for index in live.unsent():
                if (queue := choice.choose(live, index, live.slots(manifest))) is None:
                    break
                chosen.setdefault(queue, []).append(index)
            for queue, indices in chosen.items():
                queue.send(live, indices)
            if not live.is_waiting:
                live.init_image = None

    def _replay_suspects(self, in_use: list[DeviceQueue]) -> None:
        """Send suspects to devices that have nothing else, and keep a device free for the next one."""
        reserved, self._reserved = self._reserved, None
        for live in self._suspects:
            if not live.is_waiting:
                continue
            others = [queue for queue in in_use if queue.name != live.lost_on] or in_use
            free = [queue for queue in others if not queue.images and queue is not self._reserved]
            if free and self._has_init_image(live):
                free[0].send(live, live.unsent())
                free[0].suspect, live.init_image = live, None
            elif self._reserved is None and not any(queue.suspect for queue in others):
                least = min(free or others, key=lambda queue: sum(queue.backlog().values()), default=None)
                self._reserved = reserved if reserved in others else least

    def _has_init_image(self, live: LiveJob) -> bool:
        """Return True if the image that a job begins with is in memory, or there is none; else load it, to send it."""
        if live.job.request.edit is None or live.init_image is not None:
            return True
        if live.job.id not in self._loading:
            self._loading[live.job.id] = asyncio.create_task(self._load(live))
        return False

    async def _load(self, live: LiveJob) -> None:
        """Load the init image of a job from the store, and send the job then."""
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

    def on_device_room(self) -> None:
        if len(self.queues) > 1 or self.on_room is not None:  # the only device has everything already
            self.send_pending()

    def on_device_ready(self) -> None:
        self.send_pending()

    def on_device_lost(self, device: DeviceQueue, reason: str) -> None:
        """Requeue the jobs of a worker. Fail those without attempts left, or all if no worker starts."""
        self._is_sorting = True
        try:
            self._sort(device, reason)
        finally:
            self._is_sorting = False
        self.send_pending()

    def _sort(self, device: DeviceQueue, reason: str) -> None:
        """Find the suspects among the jobs of a dead worker, and the jobs that end with it."""
        taken, begun = device.take_back()
        suspects = begun or list(taken)  # without begun jobs, one that was only sent may have ended the worker
        charged = suspects if begun or len(taken) == 1 else []
        self._judge(device, charged)
        for live in suspects:
            live.lost_on = device.name
        self._suspects = list(dict.fromkeys([*suspects, *self._suspects]))
        for live in charged:
            if live.job.state is not JobState.RUNNING:
                self._tracker.record_attempt(live)
            self._tracker.requeue(live)
        for live in charged:
            if live.job.attempts >= MAX_ATTEMPTS:
                self._tracker.fail(live, "worker_lost", f"The worker died twice while generating this: {reason}.")
        if self.is_hopeless:
            for live in list(self._tracker.unfinished):
                self._tracker.fail(live, "worker_unavailable", f"No worker can be started: {reason}.")

    def _judge(self, device: DeviceQueue, charged: list[LiveJob]) -> None:
        """Count the death of a worker against its device, or against the one job that killed another worker before.

        A device that loses too many workers in a row rests, unless it is the last one.
        """
        if device.link is None or device.link.failed_starts:  # the supervisor waits longer and longer
            if device.link is not None and device.link.failed_starts == HOPELESS_STARTS and len(self.queues) > 1:
                log.error(
                    "%s is out of use, since its worker did not start %d times in a row (%s); it is tried again, and "
                    "the other devices go on",
                    device.name,
                    HOPELESS_STARTS,
                    device.link.last_failure,
                )
            return
        guilty = charged[0].lost_on if len(charged) == 1 else None
        if guilty is not None and guilty != device.name:
            for other in self.queues:
                if other.name == guilty:
                    other.losses = max(other.losses - 1, 0)
            return
        device.losses += 1
        if device.losses >= MAX_LOSSES and any(other is not device for other in self._in_use()):
            device.rest()

    def _on_job_ended(self, live: LiveJob) -> None:
        """Stop generating what is left of a job, and send what waits."""
        if live in self._suspects:
            self._suspects.remove(live)
        for queue in self.queues:
            queue.cancel(live)
        self.send_pending()

    def _gauges(self) -> dict[str, dict[str, float]]:
        """Return the gauges of each device."""
        gauges: dict[str, dict[str, float]] = {
            "zimage_worker_ready": {queue.name: float(queue.status.is_ready) for queue in self.queues},
            "zimage_worker_starts_total": {queue.name: float(queue.status.starts) for queue in self.queues},
            "zimage_worker_jobs": {queue.name: float(len(queue.images)) for queue in self.queues},
        }
        memory = {queue.name: queue.memory for queue in self.queues if queue.memory is not None}
        gauges["zimage_device_memory_used_bytes"] = {name: float(each.used) for name, each in memory.items()}
        gauges["zimage_device_memory_total_bytes"] = {name: float(each.total) for name, each in memory.items()}
        return gauges
