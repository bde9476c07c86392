"""Options of a worker host, and what it tells the fleet about itself. Knows no jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.plan.manifest import Manifest
from server.jobs.devices.device_queue import DeviceQueue
from server.jobs.storage.fleet.worker_info import SizeAverage, WorkerInfo


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Options of a host.

    Attributes:
        id: unique for each start of a host.
        host: name of its machine.
        version: of zimage-trt.
        broker: URL.
        fleet: name of the fleet.
        loras: names that its devices can apply.
        grace: seconds to finish running jobs after SIGTERM; others go back into the queue.
    """

    id: str
    host: str
    version: str
    broker: str = field(repr=False)
    fleet: str
    loras: tuple[str, ...] = ()
    grace: float = 60.0


def worker_info(
    options: HostOptions, manifest: Manifest, devices: Sequence[DeviceQueue], averages: tuple[SizeAverage, ...]
) -> WorkerInfo:
    """Return the description of a host that takes jobs."""
    return WorkerInfo(
        id=options.id,
        host=options.host,
        version=options.version,
        model=manifest.model.name,
        plan_id=manifest.plan_id,
        loras=options.loras,
        window=max(1, sum(device.window for device in devices)),
        image_input=manifest.has_image_input,
        averages=averages,
        devices=tuple(replace(device.status, host=options.host) for device in devices),
    )
