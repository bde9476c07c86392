"""Replays after the death of a worker: which jobs may have caused it, and run again alone, and which end with it.

Knows which devices there are; not what they get beside replays.
"""

import logging
from collections.abc import Sequence

from server.jobs.devices.device_queue import HOPELESS_STARTS, DeviceQueue, devices_in_use
from server.jobs.devices.init_image_loader import InitImages
from server.jobs.job import JobState
from server.jobs.live_job import LiveJob
from server.jobs.tracker import JobTracker

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 2  # of a job whose worker dies: the first, and one replay


class Replays:
    """The suspects, and what the death of a worker changes.

    Suspects are the jobs that a worker was generating when it died. One of them may have caused that, so each is
    replayed alone on a device, if possible on another one: if it kills the next worker too, no other job loses an
    attempt.

    Args:
        queues: of all devices, including those that are added later.

    Attributes:
        suspects: those that have not ended, in the order of their replays.
    """

    def __init__(self, tracker: JobTracker, queues: Sequence[DeviceQueue], init_images: InitImages) -> None:
        self.suspects: list[LiveJob] = []
        self._tracker, self._queues, self._init_images = tracker, queues, init_images
        self._reserved: DeviceQueue | None = None  # takes no further jobs until it is empty and has a suspect

    def needs(self, queue: DeviceQueue) -> bool:
        """Return True if a device has a suspect, or is kept free for one."""
        return queue is self._reserved or queue.suspect is not None

    def send(self) -> None:
        """Send suspects to devices that have nothing else, and keep a device free for the next one."""
        in_use = devices_in_use(self._queues)
        reserved, self._reserved = self._reserved, None
        for live in self.suspects:
            if not live.is_waiting:
                continue
            others = [queue for queue in in_use if queue.name != live.lost_on] or in_use
            free = [queue for queue in others if not queue.images and queue is not self._reserved]
            if free and self._init_images.is_ready(live):
                free[0].send(live, live.unsent())
                free[0].suspect, live.init_image = live, None
            elif self._reserved is None and not any(queue.suspect for queue in others):
                least = min(free or others, key=lambda queue: sum(queue.backlog().values()), default=None)
                self._reserved = reserved if reserved in others else least

    def on_device_lost(self, device: DeviceQueue, reason: str) -> None:
        """Requeue the jobs of a dead worker, add the suspects among them, and fail those without attempts left."""
        taken, begun = device.take_back()
        suspects = begun or list(taken)  # without begun jobs, one that was only sent may have ended the worker
        charged = suspects if begun or len(taken) == 1 else []
        self._judge(device, charged)
        for live in suspects:
            live.lost_on = device.name
        self.suspects = list(dict.fromkeys([*suspects, *self.suspects]))
        for live in charged:
            if live.job.state is not JobState.RUNNING:
                self._tracker.record_attempt(live)
            self._tracker.requeue(live)
        for live in charged:
            if live.job.attempts >= MAX_ATTEMPTS:
                self._tracker.fail(live, "worker_lost", f"The worker died twice while generating this: {reason}.")

    def _judge(self, device: DeviceQueue, charged: Sequence[LiveJob]) -> None:
        """Count the death of a worker against its device, or against the one job that killed another worker before.

        A device that loses too many workers in a row rests, unless it is the last one.
        """
        if device.link is None:
            return
        if device.link.failed_starts:  # the supervisor waits longer and longer
            if device.link.failed_starts == HOPELESS_STARTS and len(self._queues) > 1:
                log.error(
                    "%s is out of use, since its worker did not start %d times in a row (%s); it is tried again, and "
                    "the other devices go on",
                    device.name,
                    HOPELESS_STARTS,
                    device.link.last_failure,
                )
            return
        lost_before = charged[0].lost_on if len(charged) == 1 else None
        if lost_before is None or lost_before == device.name:
            device.losses.count += 1
            if device.losses.are_too_many and any(other is not device for other in devices_in_use(self._queues)):
                device.losses.rest(device.link.last_failure)
            return
        for other in self._queues:
            if other.name == lost_before:
                other.losses.count = max(other.losses.count - 1, 0)
