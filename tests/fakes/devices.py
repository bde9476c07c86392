"""Simulated devices: workers that generate, die, hang and restart when a test says so."""

import asyncio
from collections.abc import Awaitable, Callable

from fakes.loop import MANIFEST
from fakes.worker_link import FakeLink, finished

from server.jobs.devices.device_queue import DeviceQueue
from server.jobs.embedded import EmbeddedJobs
from server.jobs.storage.store import JobStore
from server.worker import messages
from server.worker.messages import Cancel, Generate, ToWorker, image_key


class SimulatedDevice(FakeLink):
    """A device whose worker has images and generates them one by one.

    Attributes:
        queue: of the server.
        images: keys of what the worker has, in the order of arrival, each True once it has begun.
        begun: jobs of which an image has begun here, while the worker has images of them.
        generated: keys of all images that were finished here.
        poison: jobs that kill a worker at their first step.
        suspects: returns the jobs that must be alone on a device.
        has_suspect: True if one of them was sent last.
    """

    def __init__(self, queue: DeviceQueue, window: int, poison: set[str]) -> None:
        super().__init__()
        self.queue, self.window, self.poison = queue, window, poison
        self.images: dict[str, bool] = {}
        self._begun: set[str] = set()
        self.generated: list[str] = []
        self.suspects: Callable[[], set[str]] = set
        self.has_suspect = False
        self.is_ready = False
        queue.link = self

    @property
    def begun(self) -> set[str]:
        return self._begun & {key.rpartition(":")[0] for key in self.images}

    def send(self, message: ToWorker) -> None:
        assert self.is_ready, "a message to a worker that is not ready"
        super().send(message)
        match message:
            case Generate(job, indices=indices):
                is_suspect = job in self.suspects()
                assert not self.images or not (is_suspect or self.has_suspect), "a suspect is not alone"
                self.has_suspect = is_suspect
                self._begun &= self.begun  # what is new to the worker has not begun
                for index in indices:
                    assert image_key(job, index) not in self.images, "sent twice"
                    self.images[image_key(job, index)] = False
            case Cancel(job, indices):
                for index in indices:
                    del self.images[image_key(job, index)]

    def start(self) -> None:
        """Start a worker."""
        self.is_ready, self.failed_starts, self.starts = True, 0, self.starts + 1
        self.queue.on_worker_ready()
        self.queue.on_message(messages.Ready(0.0, window=self.window))

    def fail_start(self) -> None:
        """Start a worker that ends before it is ready."""
        self.failed_starts, self.starts, self.last_failure = self.failed_starts + 1, self.starts + 1, "no device"
        self.queue.on_worker_lost("no device")

    def die(self) -> None:
        self.is_ready, self.last_failure = False, "it died"
        self.images.clear()
        self.queue.on_worker_lost("it died")

    def step(self, choice: int = 0) -> bool:
        """Begin an image, or finish one that has begun. Return False if there is nothing to do.

        Args:
            choice: which image, modulo their number.
        """
        if not self.is_ready or not self.images:
            return False
        key = [*self.images][choice % len(self.images)]
        job, _, index = key.rpartition(":")
        if not self.images[key]:
            self.images[key] = True
            self._begun.add(job)
            self.queue.on_message(messages.Started(key))
        elif job in self.poison:
            self.die()
        else:
            del self.images[key]
            self.generated.append(key)
            self.queue.on_message(finished(job, int(index)))
        return True


Story = Callable[[EmbeddedJobs, list[SimulatedDevice]], Awaitable[None]]


def play_on_devices(story: Story, windows: tuple[int, ...] = (2, 2), poison: set[str] | None = None) -> None:
    """Run a story with a job service of several devices whose workers are ready, and stop the service."""

    async def run() -> None:
        jobs = EmbeddedJobs(JobStore(None), MANIFEST, loras=("a", "b"))
        devices = [
            SimulatedDevice(jobs.worker_queue.add_device(f"cuda:{index}"), window, set() if poison is None else poison)
            for index, window in enumerate(windows)
        ]
        await jobs.start()
        for device in devices:
            device.suspects = lambda: {live.job.id for live in jobs.worker_queue._replays.suspects}
            device.start()
        await story(jobs, devices)
        for live in list(jobs._tracker.unfinished):
            jobs._tracker.cancel(live)
        await jobs.stop(grace=1)

    asyncio.run(asyncio.wait_for(run(), 60))
