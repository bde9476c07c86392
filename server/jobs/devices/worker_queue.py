"""Delivery of jobs to the workers of all devices: which device gets what and when.

Knows neither processes nor clients.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from engine.request import LoraChoice
from engine.size import Size
from server.jobs.devices.device_choice import DeviceChoice
from server.jobs.devices.device_queue import DeviceQueue, WorkerLink, devices_in_use
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.devices.init_image_loader import InitImageLoader, InitImages
from server.jobs.devices.replays import Replays
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.tracker import JobTracker

SCAN = 64  # waiting jobs that are considered at once


class WorkerQueue:
    """Sends unfinished jobs to the workers of one or more devices.

    One device gets everything at once, and decides the order itself. With several, a device has at most its window of
    images; the rest waits here in the order of `QueueOrder`, so that an image goes to the device where it ends first.
    The images of one job may be generated on several devices.

    Args:
        init_images: of the jobs; None to load them from the store.

    Attributes:
        queues: of the devices.
        on_room: called when `room` has grown; None if nobody asks for it.
    """

    def __init__(self, tracker: JobTracker, metrics: Metrics, init_images: InitImages | None = None) -> None:
        self.queues: list[DeviceQueue] = []
        self.on_room: Callable[[], None] | None = None
        self._tracker, self._metrics = tracker, metrics
        self._init_images = init_images or InitImageLoader(tracker, self.send_pending)
        self._replays = Replays(tracker, self.queues, self._init_images)
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
        free = sum(queue.room for queue in self._open_queues())
        free -= sum(len(live.unsent()) * live.slots(manifest) for live in waiting)
        return max(free, 0) // (2 if manifest.model.default_guidance > 0 else 1)

    @property
    def has_idle_device(self) -> bool:
        """True if a device that takes jobs has none."""
        return any(not queue.images for queue in self._open_queues())

    def loaded(self) -> list[tuple[LoraChoice | None, Size]]:
        """Return the LoRA and the size of each job that a device has."""
        jobs = dict.fromkeys(live for queue in self.queues for live in queue.images)
        return [(live.job.request.lora_choice, live.job.request.size(self._tracker.manifest)) for live in jobs]

    def stop(self) -> None:
        """Send no more jobs whose images are still to be read, and no device back into use."""
        self._init_images.stop()
        for queue in self.queues:
            queue.losses.stop()

    def add_suspects(self, jobs: Iterable[LiveJob]) -> None:
        """Replay these jobs one at a time, before all others."""
        self._replays.suspects.extend(jobs)

    def send_pending(self) -> None:
        """Send what no worker has yet, as far as the devices have room for it."""
        if self._is_sorting:
            return
        self._tracker.unfinished.set_devices(max(len(devices_in_use(self.queues)), 1))
        self._replays.send()
        open_queues = self._open_queues()
        if len(self.queues) == 1 and open_queues:
            self._send_everything(open_queues[0])
        elif self._tracker.unfinished.waiting and any(queue.room for queue in open_queues):
            self._send_waiting(DeviceChoice(open_queues))
        if self.on_room is not None:
            before, self._last_room = self._last_room, self.room
            if self._last_room > before:
                self.on_room()

    def _open_queues(self) -> list[DeviceQueue]:
        """Return the devices that take jobs which no worker had yet."""
        return [queue for queue in devices_in_use(self.queues) if not self._replays.needs(queue)]

    def _send_everything(self, queue: DeviceQueue) -> None:
        for live in list(self._tracker.unfinished.waiting):
            if live not in self._replays.suspects and self._init_images.is_ready(live):
                queue.send(live, live.unsent())
                live.init_image = None

    def _send_waiting(self, choice: DeviceChoice) -> None:
        """Send the first waiting jobs, until no device has room."""
        manifest, suspects = self._tracker.manifest, set(self._replays.suspects)
        waiting = (live for live in self._tracker.unfinished.in_order() if live.is_waiting and live not in suspects)
        for live in islice(waiting, SCAN):
            if not choice.fits(live.slots(manifest)):
                return  # jobs behind it wait too; else a guided one might never find two free slots
            if not self._init_images.is_ready(live):
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

    def on_device_room(self) -> None:
        if len(self.queues) > 1 or self.on_room is not None:  # the only device has everything already
            self.send_pending()

    def on_device_ready(self) -> None:
        self.send_pending()

    def on_device_lost(self, device: DeviceQueue, reason: str) -> None:
        """Requeue the jobs of a worker. Fail those without attempts left, or all if no worker starts."""
        self._is_sorting = True
        try:
            self._replays.on_device_lost(device, reason)
            if self.is_hopeless:
                for live in list(self._tracker.unfinished):
                    self._tracker.fail(live, "worker_unavailable", f"No worker can be started: {reason}.")
        finally:
            self._is_sorting = False
        self.send_pending()

    def _on_job_ended(self, live: LiveJob) -> None:
        """Stop generating what is left of a job, and send what waits."""
        if live in self._replays.suspects:
            self._replays.suspects.remove(live)
        for queue in self.queues:
            queue.cancel(live)
        self.send_pending()

    def _gauges(self) -> dict[str, dict[str, float]]:
        """Return the gauges of each device."""
        states = self.devices()
        memory = {queue.name: queue.memory for queue in self.queues if queue.memory is not None}
        return {
            "zimage_worker_ready": {state.name: float(state.is_ready) for state in states},
            "zimage_worker_starts_total": {state.name: float(state.starts) for state in states},
            "zimage_batching_measured": {state.name: float(state.batching.state == "measured") for state in states},
            "zimage_worker_jobs": {state.name: float(state.jobs) for state in states},
            "zimage_device_memory_used_bytes": {name: float(each.used) for name, each in memory.items()},
            "zimage_device_memory_total_bytes": {name: float(each.total) for name, each in memory.items()},
        }
