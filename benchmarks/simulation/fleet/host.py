"""A worker host of a simulated fleet. Knows its devices; neither the queue nor what starts hosts."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from benchmarks.simulation.fleet.device import Device
from benchmarks.simulation.fleet.queue import FleetJob
from server.jobs.storage.fleet.claim_order import Kind

State = Literal["starting", "ready", "draining", "gone"]


class FleetHost:
    """A host with its devices.

    Args:
        device: makes a device, which calls its argument when it has room.
        window: slots that each device makes use of.
        on_room: called with the host when it has room.

    Attributes:
        is_listening: True while it waits for a ticket.
    """

    def __init__(
        self,
        devices: int,
        device: Callable[[Callable[[], object]], Device],
        window: int,
        on_room: Callable[["FleetHost"], object],
    ) -> None:
        self.state: State = "starting"
        self.is_listening = False
        self._window = window
        self.devices = [device(partial(on_room, self)) for _ in range(devices)]

    def has_room(self, slots: int) -> bool:
        """Return True if an image of some slots can be taken; a device that has nothing takes any."""
        for each in self.devices:  # noqa: SIM110 (asked four times for each job, and `any` takes twice as long)
            if each.slots + slots <= self._window or not each.slots:
                return True
        return False

    @property
    def is_idle(self) -> bool:
        return not any(each.slots for each in self.devices)

    @property
    def busy_devices(self) -> int:
        return sum(each.slots > 0 for each in self.devices)

    def take(self, job: FleetJob) -> None:
        """Give a job to the device with the least work."""
        devices = self.devices
        (devices[0] if len(devices) == 1 else min(devices, key=lambda each: each.cost)).add(job)

    def loaded(self) -> set[Kind]:
        """Return LoRA and size of the images on all devices."""
        return set[Kind]().union(*(each.loaded() for each in self.devices))

    def vanish(self) -> list[FleetJob]:
        """Stop without notice, and return the jobs that are lost."""
        return [job for each in self.devices for job in each.stop()]
