"""Options of a worker host, and what it tells the fleet about itself. Knows no jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.plan.manifest import Manifest
from server.jobs.devices.device_queue import DeviceQueue
from server.jobs.storage.fleet.worker_info import SizeAverage, WorkerInfo

# A host that stops gives back at once what it has only claimed, and finishes what has begun. That takes minutes for
# several large images on a slow device, and no time on an idle host. If it is killed before, its leases end after 10 s
GRACE_SECONDS = 300.0


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
        grace: seconds to finish the jobs that have begun, after SIGTERM; see GRACE_SECONDS.
    """

    id: str
    host: str
    version: str
    broker: str = field(repr=False)
    fleet: str
    loras: tuple[str, ...] = ()
    grace: float = GRACE_SECONDS


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
