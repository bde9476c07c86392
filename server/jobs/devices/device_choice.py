"""The choice of the device on which an image ends first.

Knows what devices have and how long that takes; sends nothing.
"""

from collections.abc import Sequence

from engine.request import LoraChoice
from server.jobs.devices.device_queue import DeviceQueue, Kind
from server.jobs.live_job import LiveJob

LORA_SECONDS = 1.0  # of a change of LoRAs, until one was measured
SHARED = 0.05  # of the time that two images of a kind spend together; they share passes only where that gains this


class DeviceChoice:
    """Devices with the images that they have, and those that are about to be sent to them.

    Args:
        devices: those that take jobs, full ones too.
    """

    def __init__(self, devices: Sequence[DeviceQueue]) -> None:
        self._devices = devices
        self._open = [_Plan(device) for device in devices if device.room]
        self._full: list[_Plan] | None = None  # of those without room, made when they matter

    def fits(self, slots: int) -> bool:
        """Return True if a device has as many free slots, or nothing else."""
        return any(plan.fits(slots) for plan in self._open)

    def choose(self, live: LiveJob, index: int, slots: int) -> DeviceQueue | None:
        """Return the device on which an image ends first, and count the image as one of its images.

        Args:
            slots: that the image takes.

        Returns:
            None if no device has as many free slots, or if the image ends sooner on one that has none now.
        """
        if not (fitting := [plan for plan in self._open if plan.fits(slots)]):
            return None
        change = max((each.lora_seconds for each in self._devices if each.lora_seconds), default=LORA_SECONDS)
        best = min(fitting, key=lambda plan: plan.end(live, index, change))
        if live.job.request.lora_choice not in best.loras:
            end = best.end(live, index, change)
            if any(plan.end(live, index, change) < end for plan in self._with_lora(live) if plan not in fitting):
                return None
        best.add(live, index, slots)
        return best.device

    def _with_lora(self, live: LiveJob) -> list["_Plan"]:
        """Return the devices, full ones too, that need no change of LoRAs for a job."""
        if self._full is None:
            self._full = [_Plan(device) for device in self._devices if not device.room]
        return [plan for plan in (*self._open, *self._full) if live.job.request.lora_choice in plan.loras]


class _Plan:
    """Images that one device has, and those that it is about to get, by their estimated seconds."""

    def __init__(self, device: DeviceQueue) -> None:
        self.device = device
        self.room = device.room
        self.backlog: dict[Kind, float] = device.backlog()
        self.seconds = sum(self.backlog.values()) + device.stalled

    @property
    def loras(self) -> set[LoraChoice | None]:
        """The LoRAs that an image here needs no change for; None is one of them."""
        return {lora for _, lora in self.backlog} or {self.device.lora}

    def fits(self, slots: int) -> bool:
        return self.room >= slots or (not self.backlog and self.room > 0)

    def end(self, live: LiveJob, index: int, change: float) -> float:
        """Return the estimated seconds until an image ends here. `change`: seconds of a change of LoRAs."""
        own = self.device.seconds(live, [index])
        together = min(own, self.backlog.get(self.device.kind(live), 0.0))
        pause = 0.0 if live.job.request.lora_choice in self.loras else self.device.lora_seconds or change
        return self.seconds + pause + own - SHARED * together

    def add(self, live: LiveJob, index: int, slots: int) -> None:
        self.room = max(self.room - slots, 0)
        own, kind = self.device.seconds(live, [index]), self.device.kind(live)
        self.backlog[kind] = self.backlog.get(kind, 0.0) + own
        self.seconds += own
