"""The queue of one device: the images that its worker has, and that worker's messages.

Knows messages; not which device gets which job.
"""

import logging
from collections.abc import Collection, Iterable
from typing import Protocol

from engine.request import LoraChoice
from engine.size import Size
from server.jobs.admission.estimates import Estimates
from server.jobs.devices.device_status import DeviceStatus
from server.jobs.devices.worker_losses import WorkerLosses
from server.jobs.follower import JobPreview
from server.jobs.job import JobState, StoredImage
from server.jobs.live_job import LiveJob
from server.jobs.metrics import Metrics
from server.jobs.tracker import JobTracker
from server.worker import messages
from server.worker.messages import FromWorker, InvalidMessage, ToWorker

log = logging.getLogger(__name__)

HOPELESS_STARTS = 5  # failed starts of a worker in a row, after which its device is out of use
SILENCE = 1.0  # seconds between two messages; a worker sends two a second
GUESS = 1e-7  # seconds per pixel and forward pass, before the first image is finished

Kind = tuple[Size, LoraChoice | None]  # images of one kind may share passes
ImageMessage = messages.Started | messages.PreviewReady | messages.Finished | messages.Failed


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


class DeviceListener(Protocol):
    """Receiver of what concerns all devices: `server.jobs.devices.worker_queue.WorkerQueue`."""

    def on_device_room(self) -> None:
        """Handle that a device can take more images."""
        ...

    def on_device_ready(self) -> None:
        """Handle that the worker of a device takes messages."""
        ...

    def on_device_lost(self, device: "DeviceQueue", reason: str) -> None:
        """Handle that the worker of a device is gone."""
        ...


class DeviceQueue:
    """The unfinished images that one worker has. The `WorkerListener` of that worker's supervisor.

    Attributes:
        name: such as "cuda:0".
        link: connection to the worker; None until it is set.
        images: indices of the images that the worker has, by job.
        started: jobs that the worker has begun.
        suspect: the job that runs alone on this device.
        losses: its workers that died in a row.
        memory: of the device, as its worker last reported.
        lora: of the image that was begun last.
        lora_seconds: duration of the last change of LoRAs.
        batching: which images share passes, as its worker last reported.
    """

    def __init__(self, name: str, tracker: JobTracker, metrics: Metrics, listener: DeviceListener) -> None:
        self.name = name
        self.link: WorkerLink | None = None
        self.images: dict[LiveJob, set[int]] = {}
        self.started: set[LiveJob] = set()
        self.suspect: LiveJob | None = None
        self.losses = WorkerLosses(name, listener.on_device_room, tracker.clock)
        self.memory: messages.DeviceMemory | None = None
        self.lora: LoraChoice | None = None
        self.lora_seconds: float | None = None
        self.batching = messages.Batching()
        self._has_died_measuring = False  # a worker; the next ones do not measure batches
        self._tracker, self._metrics, self._listener = tracker, metrics, listener
        self._estimates = Estimates(tracker.manifest)  # of this device
        self._window = messages.WINDOW
        self._heard, self._busy = 0.0, 0.0  # time of the last message; seconds of the piece of work under way
        self._tokenizing: str | None = None  # job whose prompts the worker tokenizes now

    @property
    def is_ready(self) -> bool:
        """True if a worker takes messages now."""
        return self.link is not None and self.link.is_ready

    @property
    def is_hopeless(self) -> bool:
        """True if starting a worker failed too often in a row."""
        return self.link is not None and self.link.failed_starts >= HOPELESS_STARTS

    @property
    def status(self) -> DeviceStatus:
        starts, last_failure = (0, None) if self.link is None else (self.link.starts, self.link.last_failure)
        is_ready = self.is_ready and not self.losses.is_resting
        return DeviceStatus(self.name, is_ready, starts, last_failure, len(self.images), batching=self.batching)

    @property
    def window(self) -> int:
        """Slots that the worker can make use of: one image at a time after a rest, until the first is finished."""
        return 1 if self.losses.are_too_many else self._window

    @property
    def room(self) -> int:
        """Slots that are free."""
        taken = sum(len(indices) * live.slots(self._tracker.manifest) for live, indices in self.images.items())
        return max(self.window - taken, 0)

    @property
    def stalled(self) -> float:
        """Seconds for which the worker has been silent, or busy with one piece of work."""
        silent = self._tracker.clock.monotonic() - self._heard
        return max(self._busy, silent if silent > SILENCE else 0.0) if self.images else 0.0

    def kind(self, live: LiveJob) -> Kind:
        """Return what the images of a job must have in common with others to share passes."""
        return live.job.request.size(self._tracker.manifest), live.job.request.lora_choice

    def seconds(self, live: LiveJob, indices: Collection[int]) -> float:
        """Return the estimated seconds of some images of a job on this device; a guess before the first is finished."""
        if self._estimates.knows(live.job.request.size(self._tracker.manifest)):
            return self._estimates.remaining(live, indices)
        if not self._tracker.estimates.is_empty:
            return self._tracker.estimates.remaining(live, indices)
        return GUESS * self._tracker.unfinished.image_cost(live) / live.job.cost_factor * len(indices)

    def backlog(self) -> dict[Kind, float]:
        """Return the estimated seconds of the images here, by their size and LoRA."""
        found: dict[Kind, float] = {}
        for live, indices in self.images.items():
            kind = self.kind(live)
            found[kind] = found.get(kind, 0.0) + self.seconds(live, indices)
        return found

    def send(self, live: LiveJob, indices: Iterable[int]) -> None:
        """Send images of a job. Its init image is in memory."""
        assert self.link is not None
        job, indices = live.job, tuple(indices)
        data = None if live.init_image is None else live.init_image.data
        self.link.send(
            messages.Generate(job.id, job.request, job.format, indices, job.previews, job.share, job.cost_factor, data)
        )
        self.images.setdefault(live, set()).update(indices)  # last: `send` may find no memory, and the next call tries
        live.sent.update(indices)
        self._tracker.unfinished.on_sent(live)

    def cancel(self, live: LiveJob) -> None:
        """Stop generating what the worker has of a job."""
        self.started.discard(live)
        if self.suspect is live:
            self.suspect = None
        if (indices := self.images.pop(live, None)) and self.link is not None:
            self.link.send(messages.Cancel(live.job.id, tuple(sorted(indices))))

    def take_back(self) -> tuple[dict[LiveJob, set[int]], list[LiveJob]]:
        """Forget the images of a worker that is gone. Return them by job, and the jobs that it had begun."""
        begun = [live for live in self.images if live in self.started or live.job.id == self._tokenizing]
        taken, self.images = self.images, {}
        self.started, self.suspect, self._tokenizing, self.lora = set(), None, None, None
        for live, indices in taken.items():
            live.sent -= indices
            for index in indices:
                live.steps_done.pop(index, None)
        self._tracker.unfinished.on_taken_back()
        return taken, begun

    def on_message(self, message: FromWorker) -> None:
        self._heard = self._tracker.clock.monotonic()
        match message:
            case messages.Alive(busy):
                self._busy = busy
            case messages.Ready(window=window):
                self._window = window
                if self._has_died_measuring and self.link is not None:
                    self.link.send(messages.SkipMeasurement())
                self._listener.on_device_room()
            case messages.Batching(window=window):
                self.batching, self._window = message, window
                self._listener.on_device_room()
            case messages.Tokenizing(job):
                self._tokenizing = job
            case messages.Started() | messages.PreviewReady() | messages.Finished() | messages.Failed():
                if found := self._find(message.key):
                    self._on_image_message(*found, message)
            case messages.Heartbeat():
                self._metrics.heartbeat(self.name, message)
                found_steps = ((self._find(key), done) for key, done in message.steps_done.items())
                self._tracker.set_steps_done([(*found, done) for found, done in found_steps if found])
            case messages.DeviceMemory():
                self.memory = message
            case messages.LoraSwitched(seconds):
                self.lora_seconds = seconds
                self._metrics.lora_switched(seconds)

    def on_worker_ready(self) -> None:
        self._busy, self._heard = 0.0, self._tracker.clock.monotonic()
        self._listener.on_device_ready()

    def on_worker_lost(self, reason: str) -> None:
        if self.batching.state == "measuring":
            log.warning("%s: the worker died while it measured which batches gain; the next ones do not", self.name)
            self._has_died_measuring = True
        self.batching = messages.Batching()
        self._listener.on_device_lost(self, reason)

    def _on_image_message(self, live: LiveJob, index: int, message: ImageMessage) -> None:
        match message:
            case messages.Started():
                self._on_started(live)
            case messages.PreviewReady(done=done, data=data):
                self._tracker.show_preview(live, JobPreview(index, done, data))
            case messages.Finished():
                self._on_finished(live, index, message)
            case messages.Failed(code=code, message=text):
                self._tracker.fail(live, code, text)

    def _on_started(self, live: LiveJob) -> None:
        self.lora = live.job.request.lora_choice
        self.started.add(live)
        if live.job.state is not JobState.RUNNING:
            self._tracker.record_attempt(live)

    def _on_finished(self, live: LiveJob, index: int, message: messages.Finished) -> None:
        self.losses.count = 0
        self.images[live].discard(index)
        if not self.images[live]:
            del self.images[live]
            self.started.discard(live)
            self.suspect = None if self.suspect is live else self.suspect
        live.sent.discard(index)
        self._metrics.device_image(self.name)
        metadata = message.metadata
        self._estimates.learn(live.job.request.size(self._tracker.manifest), metadata.forwards, metadata.seconds)
        self._tracker.add_image(live, StoredImage(index, live.job.format.media_type, message.data, metadata))
        if not live.job.state.is_final:  # whose end has told it
            self._listener.on_device_room()

    def _find(self, key: str) -> tuple[LiveJob, int] | None:
        """Return the job and the index of an image that a message is about; None if the worker need not make it.

        Raises:
            InvalidMessage: the job has no such image.
        """
        job_id, _, index = key.rpartition(":")
        live = self._tracker.get(job_id)
        if live is None or live.job.state.is_final:
            return None
        if index not in map(str, range(live.job.image_count)):
            raise InvalidMessage(f"a message about image {index[:8]!r} of a job of {live.job.image_count}")
        return (live, int(index)) if int(index) in self.images.get(live, ()) else None


def devices_in_use(queues: Iterable[DeviceQueue]) -> list[DeviceQueue]:
    """Return the devices whose workers take jobs; those that rest only if there are no others."""
    ready = [queue for queue in queues if queue.is_ready]
    return [queue for queue in ready if not queue.losses.is_resting] or ready
